"""SecretKeeper: sets and forgets the values of workers' secrets, and has isolates begin anew with them.

An isolate holds the values that it began with. So a change makes a new version of the same code and deploys it, as if
it had been uploaded again: requests go over to it as at every deploy, and the isolates of the version before go. It is
in the history, with who did it, and nothing has to be told apart from a deploy.

Nothing here gives a value back.
"""

import sqlite3
from collections.abc import Callable
from dataclasses import asdict

from actors.catalog import Catalog
from actors.deploys import Deploys
from actors.peer import Calls
from actors.secret_store import SecretRefused, SecretStore
from actors.view import decode_plain, encode_plain
from actors.worker_names import worker_name
from isolates.disk import disk_trouble


class SecretKeeper:
    """The calls about secrets. Each answers with ``{"error": text}`` when it is refused."""

    def __init__(self, store: SecretStore, catalog: Catalog, deploys: Deploys, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._catalog = catalog
        self._deploys = deploys
        self._now_ms = now_ms
        self.calls: Calls = {
            "put_secret": self.put_secret,
            "delete_secret": self.delete_secret,
            "list_secrets": self.list_secrets,
        }

    async def put_secret(self, payload: bytes) -> bytes:
        """``{worker, name, value, author}`` -> ``{"versions": [id, …]}``, the new ones; none when no version that is
        deployed names this secret."""
        plain = decode_plain(payload)
        worker, name, author = str(plain["worker"]), str(plain["name"]), str(plain["author"])
        try:
            self._store.put(worker_name(worker), name, str(plain["value"]), author, self._now_ms())
            return encode_plain({"versions": await self._renew(worker, name, author)})
        except (SecretRefused, ValueError) as refused:
            return encode_plain({"error": str(refused)})
        except sqlite3.OperationalError as failed:
            return _not_kept(failed)

    async def delete_secret(self, payload: bytes) -> bytes:
        """``{worker, name, author}`` -> ``{"deleted": bool, "versions": [id, …]}``."""
        plain = decode_plain(payload)
        worker, name, author = str(plain["worker"]), str(plain["name"]), str(plain["author"])
        try:
            deleted = self._store.delete(worker, name)
            versions = await self._renew(worker, name, author) if deleted else []
        except sqlite3.OperationalError as failed:
            return _not_kept(failed)
        return encode_plain({"deleted": deleted, "versions": versions})

    async def list_secrets(self, payload: bytes) -> bytes:
        """``{worker}`` -> ``{"secrets": [{name, at_ms, author}, …], "unset": [name, …]}``: those with a value, and
        those that a deployed version names and that have none."""
        worker = str(decode_plain(payload)["worker"])
        listed = self._store.listed(worker)
        unset = self._named(worker) - {secret.name for secret in listed}
        return encode_plain({"secrets": [asdict(secret) for secret in listed], "unset": sorted(unset)})

    async def _renew(self, worker: str, name: str, author: str) -> list[str]:
        return await self._deploys.renew(worker, author) if name in self._named(worker) else []

    def _named(self, worker: str) -> set[str]:
        """The secrets that what is deployed of a worker names."""
        deployed = self._catalog.find(worker)
        return {name for version in (deployed.versions if deployed else ()) for name in version.bindings.secrets}


def _not_kept(failed: sqlite3.OperationalError) -> bytes:
    """The answer where the ControlPlane's disk did not take a secret, or the version that is to begin with it."""
    trouble = disk_trouble(failed)
    if not trouble:
        raise failed
    return encode_plain({"error": f"the ControlPlane could not keep it: {trouble}"})
