"""`python -m workers` is `modelyard worker`."""

from app.errors import ModelyardError
from app.logs import configure_logging, end
from app.settings import WorkerSettings, load
from workers.main import run

if __name__ == "__main__":
    configure_logging()
    try:
        run(load(WorkerSettings))
    except ModelyardError as error:
        end(f"modelyard worker: {error.detail}")
