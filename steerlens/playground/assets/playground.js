// Enter sends the prompt; Shift+Enter begins a new line.
document.addEventListener("keydown", (event) => {
  const sends = event.key === "Enter" && !event.shiftKey && !event.isComposing;
  if (sends && event.target.id === "prompt") {
    event.preventDefault();
    document.querySelector("#send").click();
  }
});
