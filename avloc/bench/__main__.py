"""`python -m avloc.bench COMMAND`: as `avloc bench COMMAND`."""

from avloc.bench.command import app

if __name__ == "__main__":
    app(prog_name="python -m avloc.bench")
