"""Workers from their sources to a running isolate, for tests that need a guest toolchain.

What is built and compiled stays beside the toolchain: a JavaScript or Python component takes half a minute otherwise.
"""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import pytest

from everwarm.build import build
from everwarm.build.toolchain import Toolchain, is_installed
from isolates.artifact import ArtifactStore, Compiled
from isolates.compiler import compile_and_start
from isolates.engine import sandbox
from isolates.isolate import Finished, Isolate
from isolates.limits import IsolateLimits
from isolates.outcome import Outcome
from isolates.stores import Stores
from tests.scripted_conversation import ScriptedConversation

ROOT = Path(__file__).parents[1]
TOOLCHAINS = Path(os.environ.get("EVERWARM_TOOLCHAIN_DIR", ROOT / ".everwarm" / "toolchains"))


def needs(toolchain: Toolchain) -> pytest.MarkDecorator:
    """Skips tests when a toolchain is not installed, unless they are told to install it."""
    return pytest.mark.skipif(
        not is_installed(toolchain, TOOLCHAINS) and os.environ.get("EVERWARM_TEST_TOOLCHAINS") != "1",
        reason=f"{toolchain.title} is not installed",
    )


@dataclass(frozen=True)
class Answered:
    """One request, as its client and its worker's owner see it. `log` is stdout and stderr in one."""

    finished: Finished
    conversation: ScriptedConversation

    @property
    def status(self) -> int:
        assert self.conversation.response is not None, (self.finished, self.log)
        return self.conversation.response.status

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        assert self.conversation.response is not None, (self.finished, self.log)
        return list(self.conversation.response.headers)

    def header(self, name: str) -> bytes | None:
        return dict(self.headers).get(name)

    @property
    def body(self) -> bytes:
        assert self.finished.outcome is Outcome.OK, (self.finished, self.log)
        assert self.conversation.finished
        return self.conversation.body

    @property
    def log(self) -> str:
        return "".join(line.text for line in self.finished.logs)


class BuiltWorker:
    """An isolate of a worker that was built just now."""

    def __init__(self, isolate: Isolate) -> None:
        self.isolate = isolate

    @classmethod
    def of(cls, folder: Path) -> "BuiltWorker":
        """Builds the worker in `folder` and starts an isolate of it. Raises BuildError."""
        built = build(folder, cache_dir=TOOLCHAINS / "cache", toolchain_dir=TOOLCHAINS, progress=lambda line: None)
        return cls.of_component(built.component, variables=built.manifest.vars)

    @classmethod
    def of_component(
        cls,
        component: Path,
        artifacts: Path = TOOLCHAINS / "artifacts",
        variables: tuple[tuple[str, str], ...] = (),
        stores: Stores | None = None,
    ) -> "BuiltWorker":
        store = ArtifactStore(artifacts)
        compiled = compile_and_start(component.read_bytes(), store, IsolateLimits(startup_cpu_ms=10_000))
        assert isinstance(compiled, Compiled), compiled
        box = sandbox()
        isolate = Isolate.start(
            box,
            store.map(box, compiled.component_digest),
            IsolateLimits(startup_cpu_ms=5_000, cpu_ms=5_000),
            secrets.token_bytes,
            variables,
            stores,
        )
        assert isinstance(isolate, Isolate), isolate
        return cls(isolate)

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        headers: tuple[tuple[str, bytes], ...] = (("host", b"test.localhost"),),
        body: list[bytes] | None = None,
        body_breaks: bool = False,
    ) -> Answered:
        conversation = ScriptedConversation(path, method=method, headers=headers, body=body, body_breaks=body_breaks)
        return Answered(self.isolate.run(conversation), conversation)

    def close(self) -> None:
        self.isolate.close()
