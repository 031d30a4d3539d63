"""The page that is served while the model loads."""

import time
from typing import Any

from steerlens.playground.access import guard

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>steerlens playground</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 16px/1.45 Helvetica, Arial, sans-serif; max-width: 40rem; margin: 15vh auto;
         padding: 0 16px; }
  h1 { font-size: 1.4rem; }
  progress { width: 100%; accent-color: #0072b2; }
</style>
<h1>steerlens playground</h1>
<p id="stage" role="status">Starting …</p>
<progress aria-label="loading"></progress>
<script>
  const stage = document.querySelector("#stage");
  async function look() {
    try {
      const answer = await fetch("/loading");
      if (answer.status !== 202) return location.reload();  // the page itself answers
      stage.textContent = await answer.text();
      setTimeout(look, 400);
    } catch {
      stage.textContent = "The playground has ended; its terminal says why.";
      document.querySelector("progress").remove();
    }
  }
  look();
</script>
</html>
"""


class Waiting:
    """How far the start is; the thread that loads says so, and the page shows it."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._began = time.monotonic()

    def __str__(self) -> str:
        return f"{self.stage} … {time.monotonic() - self._began:.0f} s"


def waiting_page(waiting: Waiting, token: str | None) -> Any:
    """A Flask server with that page alone; its `/loading` answers 202 as long as it is served."""
    from flask import Flask, Response

    server = Flask("steerlens-waiting", static_folder=None)
    guard(server, token)

    @server.get("/")
    def begin() -> Any:
        return Response(_PAGE, headers={"Cache-Control": "no-store"})

    @server.get("/loading")
    def loading() -> Any:
        headers = {"Cache-Control": "no-store"}
        return Response(str(waiting), status=202, mimetype="text/plain", headers=headers)

    return server
