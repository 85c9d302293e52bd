"""Components that answer one request and no more.

A stock JavaScript build around ``addEventListener('fetch', ...)`` keeps one fetch event per instance: the second
request of an instance never gets an answer. Such a component is told at deploy, by what its engine exports, so that
nobody's request has to find out. It then gets a started isolate of its own for each request.

How it is told: StarlingMonkey is initialised by wizer and says so in its exports. A handler that a worker exports
itself is added to the engine by the toolchain, with the clean-up function that the canonical ABI foresees after a call;
the engine's own handler, which makes fetch events, has none. Observed with componentize-js 0.23.
"""

from isolates.component_binary import Root
from isolates.wasm_binary import CoreModule

_ENGINE = b"wizer.resume"
_HANDLER = b"wasi:http/incoming-handler@0.2."
_CLEAN_UP = b"cabi_post_"


def is_single_shot(root: Root) -> bool:
    """Whether the component's instances answer once. ``NotUnderstood`` when its modules can not be read."""
    for module in root.of("module"):
        binary = module.parts[0]
        assert isinstance(binary, bytes)
        exports = CoreModule.parse(binary).export_names()
        handlers = {name for name in exports if name.startswith(_HANDLER) and name.endswith(b"#handle")}
        if _ENGINE in exports and handlers:
            return not any(_CLEAN_UP + name in exports for name in handlers)
    return False
