"""`python -m steerlens`."""

from steerlens.cli import app

if __name__ == "__main__":
    app(prog_name="steerlens")
