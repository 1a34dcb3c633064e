"""The kernels of a run: reached over sockets of its own, and gone with it."""

import asyncio
import os
import tempfile
from pathlib import Path

import pytest

from srlib.kernels import Kernels


@pytest.mark.skipif(os.name != "posix", reason="Windows keeps to ports")
@pytest.mark.parametrize(("depth", "transport"), [(0, "ipc"), (3, "tcp")])
def test_a_kernel_is_reached_over_a_socket_where_its_path_fits(tmp_path, monkeypatch, depth, transport):
    folder = Path(tempfile.gettempdir() if depth == 0 else tmp_path.joinpath(*["long" * 10] * depth))
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    kernels = Kernels(backend=None)
    managers = [kernels.manager({}, tmp_path / f"{i}.txt")() for i in range(2)]

    async def meet(manager) -> str:
        await manager.start_kernel()
        client = manager.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=120)
            return manager.get_connection_info()["ip"]
        finally:
            client.stop_channels()

    async def meet_all() -> list[str]:
        return await asyncio.gather(*(meet(manager) for manager in managers))

    addresses = asyncio.run(meet_all())
    assert [manager.transport for manager in managers] == [transport] * 2
    if transport == "ipc":
        assert len(set(addresses)) == 2
        assert all(Path(address).is_relative_to(kernels.sockets) for address in addresses)
        assert len(os.listdir(kernels.sockets)) == 10
        assert os.stat(kernels.sockets).st_mode & 0o077 == 0, "nobody else reaches a kernel of ours"
    kernels.kill()
    assert not os.path.exists(kernels.sockets)
    for manager in managers:
        manager.provisioner.process.wait(timeout=20)
