"""A session on a server, over the open inference protocol v2."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import numpy as np

from echoir.runtime.contract import Array, check_tensor, check_tiles
from echoir.runtime.errors import ArtifactError, BackendError, ImageError
from echoir.runtime.guard import guard
from echoir.runtime.manifest import Manifest, Role
from echoir.runtime.serving import v2
from echoir.runtime.serving.connection import FULL, Answer, Connection

if TYPE_CHECKING:
    from typing_extensions import Self

SCHEMES = ("http", "https")
MANIFEST = "echoir_manifest"  # parameter of the model's configuration
TIMEOUT = 60.0  # seconds
PATIENCE = 30.0
FORM = "http://HOST:PORT/MODEL[?timeout=SECONDS&patience=SECONDS]"


@dataclass(frozen=True)
class Served:
    """A model that a server holds, by the manifest that ``echoir triton`` gave it.

    Attributes:
        url: as it was given.
        manifest: of the artifact that is served.
        max_batch: tiles that one request may hold.
    """

    url: str
    manifest: Manifest
    max_batch: int

    @classmethod
    def open(cls, url: str) -> Served:
        """Ask a server for a model.

        Args:
            url: ``http://HOST:PORT/MODEL``; a path before the model's name is a proxy's. The query may set ``timeout``,
                seconds that one answer may take (60), and ``patience``, seconds of trying again while the server is
                full or gone (30).

        Raises:
            BackendError: no such server, no such model, or it is not ready.
            ArtifactError: the server's model is not what the manifest says, or has no manifest.
        """
        client = _Client(url)
        try:
            return cls(url, *client.describe())
        finally:
            client.close()


class RemoteSession:
    """Sends tiles to a server. Threads share it; each request in flight has a connection of its own.

    Opening it runs one tile, since a server may call a model ready whose process is gone.

    Raises:
        BackendError: as :meth:`run`.
        ImageError: the canary tile came back as pixels that cannot be a restored image.
    """

    def __init__(self, served: Served) -> None:
        self.manifest, self.max_batch = served.manifest, served.max_batch
        self._client = _Client(served.url)
        try:
            self.check_health()
        except BaseException:
            self.close()
            raise

    def check_health(self) -> None:
        """Readiness as the server tells it, and one tile of noise there and back.

        Raises:
            BackendError: the model is not ready, or is said to be and does not work.
        """
        self._client.check_ready()
        tile, source, sink = self.manifest.tile, self.manifest.input, self.manifest.output
        noise = np.random.default_rng(0).integers(0, 256, (1, tile.height, tile.width, source.channels), np.uint8)
        given = noise if source.layout == "NHWC" else noise.transpose(0, 3, 1, 2)
        if source.dtype == "float32":
            given = given / np.float32(255)
        try:
            output = self.run(given)[0]
            guard(noise[0], output if sink.layout == "NHWC" else output.transpose(1, 2, 0), 255, (0, 0), self.manifest)
        except (BackendError, ImageError) as error:
            raise BackendError(f"the server calls the model ready, but a canary tile failed: {error}") from error

    def run(self, tiles: Array) -> Array:
        """As :class:`~echoir.runtime.contract.Session` says: in requests of the server's largest batch."""
        manifest = self.manifest.of_tiles(tiles.shape)
        check_tiles(tiles, manifest)
        size = manifest.tile.batch
        outputs = []
        for start in range(0, len(tiles), self.max_batch):
            batch = tiles[start : start + self.max_batch]
            missing = size - len(batch) if size is not None else 0
            if missing:
                batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
            outputs.append(self._client.infer(batch, manifest)[: len(batch) - missing])
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)

    def facts(self) -> dict[str, str]:
        """The server's address; see :class:`echoir.runtime.contract.Described`."""
        return {"server": self._client.place()}

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Client:
    """One model's part of the protocol."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        prefix, _, name = parts.path.rstrip("/").rpartition("/")
        if parts.scheme not in SCHEMES:
            cause = (
                "gRPC is not spoken here; use the server's HTTP port" if parts.scheme == "grpc" else f"needed {FORM}"
            )
            raise BackendError(f"{url}: {cause}")
        try:
            port_fits = parts.port != 0
        except ValueError:
            port_fits = False
        if not name or not parts.hostname or not port_fits or parts.username is not None or parts.fragment:
            raise BackendError(f"{url.rpartition('@')[2]} is no model on a server; needed {FORM}")
        limits = {"timeout": TIMEOUT, "patience": PATIENCE}
        for key, value in parse_qsl(parts.query, keep_blank_values=True):
            limits[key] = _seconds(url, key, value, known=tuple(limits))
        self.name = unquote(name)
        self._at = f"/v2/models/{quote(self.name, safe='')}"
        self._connection = Connection(parts._replace(path=prefix), limits["timeout"] or TIMEOUT, limits["patience"])

    def check_ready(self) -> None:
        """Refuse a server where the model is unknown or does not get ready."""
        answer = self._connection.ask(f"{self._at}/ready", most=v2.MOST_JSON)
        if answer.status != 200:
            self._known()
            raise BackendError(f"{self.place()}: the server is there, but the model is not ready{_reason(answer)}")

    def describe(self) -> tuple[Manifest, int]:
        """The manifest, and the largest batch of a request, after checking the server's own words against it."""
        self.check_ready()
        metadata = self._known()
        config = self._get(f"{self._at}/config", "the model's configuration, where Triton keeps the manifest")
        parameters = config.get("parameters")
        entry = parameters.get(MANIFEST) if isinstance(parameters, dict) else None
        text = entry.get("string_value") if isinstance(entry, dict) else None
        if not isinstance(text, str):
            hint = "make its model repository with: echoir triton -m ARTIFACT -o models/"
            raise ArtifactError(
                f"parameters.{MANIFEST}", "nothing", "the manifest of the artifact that is served", hint
            )
        manifest = Manifest.from_json(text)
        self._check_metadata(metadata, manifest)
        largest = config.get("max_batch_size", 0)  # zero: the tensors' own first size is the batch
        if type(largest) is not int or largest < 0:
            raise ArtifactError("max_batch_size", largest, "a whole number from 0 up")
        return manifest, manifest.tile.batch or largest or 1

    def infer(self, tiles: Array, manifest: Manifest) -> Array:
        """One request."""
        sink, shape = manifest.output, manifest.shape("output", len(tiles))
        body, headers = v2.request(tiles, manifest.input, sink)
        most = v2.MOST_JSON + math.prod(shape) * np.dtype(sink.dtype).itemsize
        answer = self._connection.ask(f"{self._at}/infer", body, headers, most=most)
        if answer.status != 200:
            raise BackendError(f"{self.place()}: the server answered {answer.status}{_reason(answer)}")
        length = next((value for name, value in answer.headers.items() if name.lower() == v2.LENGTH.lower()), None)
        try:
            return v2.answer(answer.body, length, sink, shape)
        except v2.BadAnswerError as error:
            raise BackendError(f"{self.place()}: an answer makes no sense: {error}") from error

    def close(self) -> None:
        self._connection.close()

    def place(self) -> str:
        return f"{self._connection.place}{self._connection.url.path}/{self.name}"

    def _known(self) -> dict[str, Any]:
        """The server's own description of the model."""
        return self._get(self._at, "the model; is its name right?")

    def _get(self, path: str, what: str) -> dict[str, Any]:
        answer = self._connection.ask(path, most=16 * v2.MOST_JSON)
        if answer.status != 200:
            raise BackendError(
                f"{self.place()}: the server answered {answer.status} to {path}, {what}{_reason(answer)}"
            )
        try:
            return v2.json_object(answer.body)
        except v2.BadAnswerError as error:
            raise BackendError(f"{self.place()}: the answer to {path} makes no sense: {error}") from error

    def _check_metadata(self, metadata: dict[str, Any], manifest: Manifest) -> None:
        if metadata.get("name") != self.name:
            raise ArtifactError("name", metadata.get("name"), self.name, "the server answers for another model")
        for role in get_args(Role):
            found = metadata.get(f"{role}s")
            if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], dict):
                raise ArtifactError(
                    role, json.dumps(found)[:200], "one tensor", "the manifest does not belong to this model"
                )
            tensor = found[0]
            shape = tensor.get("shape")
            # Triton's C++ and other servers write sizes as numbers or as text.
            sizes = [max(int(size), 0) for size in shape] if isinstance(shape, list) and all(map(_whole, shape)) else []
            datatype = str(tensor.get("datatype"))
            check_tensor(role, manifest, str(tensor.get("name")), v2.DTYPES.get(datatype, datatype), sizes)


def _whole(size: object) -> bool:
    return type(size) is int or (isinstance(size, str) and size.removeprefix("-").isdecimal())


def _seconds(url: str, key: str, value: str, known: tuple[str, ...]) -> float:
    if key not in known:
        raise BackendError(f"{url}: {key} is unknown; the address may set {', '.join(known)}")
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf or (key == "timeout" and not seconds):
        raise BackendError(f"{url}: {key} is {value!r}, needed seconds")
    return seconds


def _reason(answer: Answer) -> str:
    """The server's own words, as the end of a sentence."""
    if answer.status == FULL:
        return ""
    try:
        said = v2.json_object(answer.body).get("error", "")
    except v2.BadAnswerError:
        said = answer.body[:200].decode("utf-8", "replace").strip()
    return f": {str(said)[:500]}" if said else ""
