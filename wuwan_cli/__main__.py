"""`python -m wuwan_cli` is `wuwan`."""

from wuwan_cli.main import run

if __name__ == "__main__":
    run()
