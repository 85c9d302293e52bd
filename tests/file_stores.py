"""Key-value stores for a guest without servers: a real file, whose answers come at once."""

from actors.store_file import StoreFile
from isolates.stores import StoreAsked, StoreTold


class FileStores:
    """The stores of one version that binds ``sessions``, and nothing else."""

    def __init__(self, file: StoreFile) -> None:
        self.file = file
        self.asked: list[StoreAsked] = []

    def begin(self, store: str, asked: StoreAsked) -> StoreTold:
        self.asked.append(asked)
        if store != "sessions":
            return StoreTold(error=("no-such-store", None))
        return self.file.carry_out(store, asked)
