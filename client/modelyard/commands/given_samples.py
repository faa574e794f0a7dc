"""Options of `predict` and `submit` that name the samples: a file, pictures, texts, an example, a held-out digit."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import click

from modelyard.commands.version_options import version_options
from modelyard.errors import InputError, NoCandidateError

if TYPE_CHECKING:
    from modelyard import Client, WorkerInfo
    from modelyard.calls import SubmitOptions
    from modelyard.inputs import Samples

F = TypeVar("F", bound=Callable[..., Any])
DATA_KEYS = frozenset({"data", "inputs", "instances", "dataframe_split", "dataframe_records"})
SUFFIXES = {
    ".json": "application/json",
    ".csv": "text/csv",
    ".parquet": "application/vnd.apache.parquet",
    ".npy": "application/x-npy",
    ".npz": "application/x-npz",
}
STARTS = {
    b"\x93NUMPY": SUFFIXES[".npy"],
    b"PK": SUFFIXES[".npz"],
    b"PAR1": SUFFIXES[".parquet"],
    b"{": SUFFIXES[".json"],
    b"[": SUFFIXES[".json"],
}


class Given(TypedDict):
    """The options of `sample_options`."""

    picture: Path | None
    data: Path | None
    images: tuple[Path, ...]
    texts: tuple[str, ...]
    example: bool
    digit: int | None
    model: str | None
    version: str | None
    endpoint: str | None
    worker: int | None
    params: dict[str, Any] | None


@dataclass(frozen=True)
class Sample:
    """The samples to send.

    Attributes:
        source: Where it is from, for people.
        params: Parameters that are not in the samples themselves.
        true_label: True class of a held-out digit.
        digit: The digit, to be drawn: float32, shape (1, 1, 28, 28).
    """

    samples: Samples
    source: str
    params: dict[str, Any] | None = None
    true_label: int | None = None
    digit: Any = None


def sample_options(function: F) -> F:
    """Add the argument IMAGE and the options that name samples, a version and its parameters."""
    file = click.Path(path_type=Path)
    options = (
        click.argument("picture", metavar="[IMAGE]", type=file, required=False),
        click.option(
            "--data",
            type=file,
            metavar="FILE",
            help="Samples: .json, .csv, .parquet, .npy or .npz; - reads standard input.",
        ),
        click.option(
            "--image", "images", type=file, multiple=True, help="PNG or JPEG image, as it is; repeatable."
        ),
        click.option("--text", "texts", multiple=True, help="Text; repeatable."),
        click.option("--example", is_flag=True, help="The version's own example."),
        click.option(
            "--digit", type=int, metavar="I", help="Index of a held-out digit; default: a random one."
        ),
        version_options,
    )
    for option in reversed(options):
        function = option(function)
    return function


def selector(given: Given) -> SubmitOptions:
    """Which version is to answer."""
    return {
        "worker": given["worker"],
        "model": given["model"],
        "version": given["version"],
        "endpoint": given["endpoint"],
    }


def given_sample(given: Given, client: Client) -> Sample:
    """The samples that the options name; without any, a random held-out digit.

    Raises:
        InputError: A file cannot be read.
        NoCandidateError: No version with an example is served.
    """
    names = ("picture", "data", "images", "texts", "example", "digit")
    named = [name for name in names if given[name] not in (None, (), False)]  # type: ignore[literal-required]
    if len(named) > 1:
        raise click.UsageError("give one of IMAGE, --data, --image, --text, --example and --digit")
    data = given["data"]
    if given["picture"] and given["picture"].suffix.lower() in SUFFIXES:
        data = given["picture"]
    if data is not None:
        return _data(data, given["params"])
    if given["images"]:
        return _images(given["images"], given["params"])
    if given["texts"]:
        return Sample(list(given["texts"]), "text", given["params"])
    if given["example"]:
        return _example(given, client)
    digit, source, true_label = chosen_sample(given["picture"], given["digit"])
    return Sample(digit, source, given["params"], true_label, digit)


def _data(path: Path, params: dict[str, Any] | None) -> Sample:
    """The content of a file as it is; JSON that is no request body is taken for samples."""
    import msgspec
    import numpy as np

    from modelyard import Body

    content = _content(path)
    if str(path) == "-":
        kind = next(
            (kind for start, kind in STARTS.items() if content.lstrip().startswith(start)), "text/csv"
        )
    else:
        kind = SUFFIXES.get(path.suffix.lower(), "")
    if not kind:
        raise InputError(f"{path} is of an unknown kind; expected one of {', '.join(SUFFIXES)}")
    if kind == SUFFIXES[".npy"]:
        try:
            return Sample(np.load(BytesIO(content), allow_pickle=False), str(path), params)
        except (ValueError, EOFError) as error:
            raise InputError(f"{path} is no NumPy file of numbers or text: {error}") from None
    if kind != SUFFIXES[".json"]:
        return Sample(Body(content, kind), str(path), params)
    try:
        document = msgspec.json.decode(content)
    except msgspec.DecodeError:  # NaN in Python's notation, or a mistake that the controller names
        return Sample(Body(content), str(path), params)
    if isinstance(document, dict) and document.keys() & DATA_KEYS:
        return Sample(Body({**document, "params": params} if params else document), str(path))
    return Sample(document, str(path), params)


def _content(path: Path) -> bytes:
    return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()


def _images(paths: Sequence[Path], params: dict[str, Any] | None) -> Sample:
    from modelyard import Body

    source, contents = ", ".join(map(str, paths)), [path.read_bytes() for path in paths]
    if len(contents) == 1 and not params:
        kind = "image/png" if contents[0].startswith(b"\x89PNG") else "image/jpeg"
        return Sample(Body(contents[0], kind), source)
    return Sample([{"b64": base64.b64encode(content).decode()} for content in contents], source, params)


def _example(given: Given, client: Client) -> Sample:
    """The example of the version that the options select, or of the one that answers."""
    from modelyard import Body

    example, version = example_of(selected_version(client, selector(given)))
    body = {**example, "params": given["params"]} if given["params"] else example
    return Sample(Body(body), f"example of {version}")


def example_of(info: WorkerInfo | None) -> tuple[dict[str, Any], str]:
    """The request that is a version's example, and the version in words.

    Raises:
        NoCandidateError: There is no such version, or it has no example.
    """
    if info is None:
        raise NoCandidateError("no such version is served; `modelyard status` lists those that are")
    version = f"{info.model_name} version {info.model_version}"
    if info.example is None:
        raise NoCandidateError(f"{version} has no example, or one larger than 4 KiB; give --data FILE")
    return info.example, version


def selected_version(client: Client, selector: SubmitOptions) -> WorkerInfo | None:
    """The version that a request with this selector goes to, as far as the document of the pool tells."""
    workers = client.workers()
    if endpoint := selector.get("endpoint"):
        chosen = client.route(endpoint=endpoint).routes[0].worker
        return next((info for info in workers if info.worker == chosen), None)
    name, _, alias = (selector.get("model") or "").partition("@")
    worker, wanted = selector.get("worker"), selector.get("version") or alias
    found = [
        info
        for info in workers
        if worker in (None, info.worker)
        and name in ("", info.model_name)
        and (not wanted or str(wanted) in (str(info.model_version), *info.aliases))
    ]
    return min(found, key=lambda info: (not info.chosen, info.rank is None, info.rank or 0), default=None)


def chosen_sample(image: Path | None, digit: int | None) -> tuple[Any, str, int | None]:
    """The sample (float32, shape (1, 1, 28, 28)), where it is from, and its true class where that is known.

    Args:
        image: A picture of one digit.
        digit: Index of a held-out digit, where there is no picture; None draws one.

    Raises:
        InputError: The picture cannot be read.
        ParameterError: There is no such digit.
    """
    if image is not None:
        from modelyard.images import load_png_28

        return load_png_28(image), image.name, None
    from modelyard.samples import heldout_digit

    index, sample, true_label = heldout_digit(digit)
    return sample, f"held-out digit {index}", true_label
