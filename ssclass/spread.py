"""One function over many items: in this process, or in processes of a Ray cluster, as `compute` in the settings says.

What makes the function travels, once to each process: it opens the network there and keeps it. Answers come in the
order of the items, whoever gives them. When a process dies, or its machine, Ray starts another, which is asked again;
so a function must give the same when it is asked twice. Nothing here changes an answer.
"""

from __future__ import annotations

import os
import socket
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ssclass.errors import FailedError, InputError, SsclassError
from ssclass.settings import Settings
from ssclass.text import message

T = TypeVar("T")
R = TypeVar("R")
Make = Callable[[], Callable[[T], R]]

AHEAD = 2
"""Items that wait at each process, so that none stands idle while its answer travels."""
DEATHS = 3
"""So often an item is asked again when a process dies over it."""
OBJECTS = 200_000_000
"""Bytes that a cluster of this machine alone keeps of items and answers on their way."""
KNOCK = 5.0
"""Seconds in which a named cluster must take a connection."""
STARTS = 3
"""Ray gives its own parts fifteen seconds to start, which is little on a busy machine."""
LOCAL = 'or set compute = "local" in ssclass.toml'


_crowded = False


def crowded() -> bool:
    """Whether this is one of a cluster's processes, of which its machine has as many as cores."""
    return _crowded


def elsewhere(settings: Settings | None) -> bool:
    """Whether functions run in other processes than this one, maybe on other machines; without settings they do not."""
    return settings is not None and settings.compute == "ray"


def spread(
    settings: Settings | None, make: Make[T, R], items: Iterable[T], threads: int = 1, *, network: bool = True
) -> Iterator[R]:
    """Yield what the function that `make` makes answers on each item, in the order of the items.

    `make` and items can be pickled. `threads`: how many items a process works at side by side; the function is safe for
    that. `network`: the function asks one, so that where the cluster has GPUs, each process has one, and there are no
    more. A few items a process are taken ahead, so any number of them may come. What the function raises of ours is
    raised here, in its place. FailedError where the cluster cannot be used, InputError where Ray is not installed.
    """
    if settings is not None and elsewhere(settings):
        yield from _on_ray(settings, make, items, threads, network)
    else:
        yield from _here(make, items, threads)


def _here(make: Make[T, R], items: Iterable[T], threads: int) -> Iterator[R]:
    function = make()
    if threads == 1:
        yield from map(function, items)
        return
    asked: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="spread") as pool:
        for item in items:
            asked.append(pool.submit(function, item))
            if len(asked) >= AHEAD * threads:  # more than work at a time, so that none waits for a slow one before it
                yield asked.popleft().result()
        while asked:
            yield asked.popleft().result()


# -- on Ray ------------------------------------------------------------------------------------------------


def _on_ray(settings: Settings, make: Make[T, R], items: Iterable[T], threads: int, network: bool) -> Iterator[R]:
    from ssclass.code import code_digest

    items = iter(items)
    try:
        items = chain([next(items)], items)
    except StopIteration:  # nothing to do, as mostly: a cluster takes many seconds to start
        return
    ray = _connected(settings)
    with _named(ray, settings):
        have = ray.cluster_resources()
        gpus = int(have.get("GPU", 0)) if network else 0
        most = gpus or max(1, int(have.get("CPU", 1)))
        kind = ray.remote(
            num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=-1, max_task_retries=DEATHS, max_concurrency=threads
        )(_Process)
        kept = ray.put(make)  # for as long as processes may have to be started again
        calls: Counter[Any] = Counter()
        running: dict[Any, Any] = {}  # answers that are not there yet, and who gives them
        order: deque[Any] = deque()

        def free() -> Any:
            """The process that waits for work, a new one, or the one with the least; None where all have enough."""
            idlest = min(calls, key=lambda process: calls[process], default=None)
            if idlest is not None and calls[idlest] == 0:
                return idlest
            if len(calls) < most:
                idlest = kind.remote(code_digest(), not gpus, [kept])
                calls[idlest] = 0
            return idlest if calls[idlest] < AHEAD * threads else None

        def wait() -> None:
            done, _ = ray.wait([*running], num_returns=1)
            for each in done:
                calls[running.pop(each)] -= 1

        def answers() -> Iterator[R]:
            while order and order[0] not in running:
                found = ray.get(order.popleft())
                if isinstance(found, SsclassError):
                    raise found
                yield found

        try:
            for item in items:
                while len(order) >= 2 * AHEAD * threads * most or (process := free()) is None:
                    wait()
                    yield from answers()
                call = process.answer.remote(item)
                order.append(call)
                running[call] = process
                calls[process] += 1
            while order:
                wait()
                yield from answers()
        finally:
            for process in calls:
                ray.kill(process)


class _Process:
    """A process of the cluster, which makes the function when it is first asked.

    `make`: a list with Ray's reference to what makes it. By itself it would be fetched before the process starts, and
    Ray warns of that.
    """

    def __init__(self, code: str, one_thread: bool, make: list[Any]) -> None:
        global _crowded
        _crowded = one_thread
        if one_thread:  # as many processes as cores; a GPU's own has those of its machine
            os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["TF_NUM_INTEROP_THREADS"] = "1"
        self._code, self._make = code, make
        self._function: Callable[[Any], Any] | None = None
        self._lock = threading.Lock()

    def answer(self, item: Any) -> Any:
        """The function's answer, or the error of ours that it raised."""
        try:
            with self._lock:
                if self._function is None:
                    self._check()
                    self._function = _fetched(self._make)()
            return self._function(item)
        except SsclassError as error:
            return error

    def _check(self) -> None:
        """Other code may answer otherwise, and features would be remembered under the same name."""
        from ssclass.code import code_digest

        if code_digest() != self._code:
            raise FailedError(
                f"{socket.gethostname()}: has another ssclass, or other versions of what it computes with, than the "
                f"machine that asks; install the same on every machine of the Ray cluster, {LOCAL}"
            )


def _fetched(make: list[Any]) -> Any:
    import ray

    return ray.get(make[0])


def _connected(settings: Settings) -> Any:
    """The module `ray`, connected: to the cluster that is named, else to one that is started and ends with us."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if settings.ray_address is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on any system: it listens on loopback alone
    try:
        import ray
    except ImportError as error:
        raise InputError(f"compute: Ray is not installed; run `pip install 'ssclass[ray]'`, {LOCAL}") from error
    if not ray.is_initialized():
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        if settings.ray_address is None:
            _start(ray, quiet)
        else:
            _knock(settings.ray_address)
            try:
                with warnings.catch_warnings(action="ignore"):  # what is wrong is in the error too
                    ray.init(address=settings.ray_address, **quiet)
            except Exception as error:  # Ray raises what it likes: ConnectionError, RuntimeError, ValueError, its own
                raise _unusable(settings.ray_address, error) from error
    return ray


def _start(ray: Any, quiet: dict[str, Any]) -> None:
    for attempt in range(1, STARTS + 1):
        try:
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECTS, **quiet)
            return
        except Exception as error:  # a bare Exception, where its parts are late
            ray.shutdown()
            if attempt == STARTS:
                raise FailedError(
                    f"Ray does not start on this machine ({message(error, 200)}); try again when it is less busy, "
                    f"{LOCAL}"
                ) from error


def _knock(address: str) -> None:
    """Ray itself would try for half a minute."""
    at = urlsplit(address if "://" in address else f"//{address}")
    try:
        socket.create_connection((at.hostname or "", at.port or 0), KNOCK).close()
    except OSError as error:
        raise FailedError(
            f"ray_address {address}: nobody answers there ({error.strerror or error}); start a cluster (`ray start "
            f"--head`), correct it in ssclass.toml or SSCLASS_RAY_ADDRESS, {LOCAL}"
        ) from error


def _unusable(address: str | None, error: Exception) -> FailedError:
    return FailedError(
        f"ray_address {address}: cannot be used ({message(error, 200)}); look whether that is Ray, of the same version "
        f"of Ray and Python, and whether it asks for a token (RAY_AUTH_MODE=token), {LOCAL}"
    )


@contextmanager
def _named(ray: Any, settings: Settings) -> Iterator[None]:
    """What Ray raises of its own, as ours; what a function raised that is not ours stays what it is."""
    try:
        yield
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayActorError as error:
        raise FailedError(
            f"Ray: the processes that were asked died again and again ({message(error, 300)}); look at the logs of the "
            f"cluster, give its machines more memory, {LOCAL}"
        ) from error
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise _unusable(settings.ray_address, error) from error
