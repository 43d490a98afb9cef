"""What a rehearsal reaches in place of the internet: the hub, other downloads, a judge; all on the loopback host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from reca.sources.catalogue import load_sources
from reca.sources.fetch import Endpoints, origin_url
from tests.evaluation.judges import judge_server
from tests.evaluation.judges.judge_server import Answer, JudgeServer
from tests.hub import benchmarks, models_at_scale
from tests.hub.server import Hub
from tests.rehearsal.web import Web

JUDGE_HOST = "api.openai.com"
KEYS = {"OPENAI_API_KEY": "rehearsal-key-of-a-loopback-judge"}


@dataclass
class Servers:
    """Running servers, and the folder of files that have no address (`reca pin --mirror`)."""

    hub: Hub
    web: Web
    judge: JudgeServer
    mirror: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**self.hub.environment, **self.web.environment, **KEYS}


@contextmanager
def serving(
    folder: Path, catalogue: Path, scale: str, answers: Sequence[Answer] = ()
) -> Iterator[Servers]:
    """All servers, with their files below `folder`; `catalogue` is written, without hashes of real files.

    `answers`: what the judge does, request by request (default: it answers by rule).
    """
    mirror = folder / "mirror"
    benchmarks.write_catalogue(catalogue)
    benchmarks.write_mirror(mirror)
    repositories = {**models_at_scale.repositories(scale), **benchmarks.repositories()}
    hub = Hub(repositories)
    with ExitStack() as stack:
        stack.enter_context(hub.serving())
        judge = stack.enter_context(judge_server.serving(*(answers or [judge_server.by_rule])))
        web = Web(pages(catalogue, mirror), {JUDGE_HOST: judge.url}, folder)
        stack.enter_context(web.serving())
        yield Servers(hub, web, judge, mirror)


def pages(catalogue: Path, mirror: Path) -> dict[str, Path]:
    """Files of the mirror by their public address, where they have one."""
    found = {}
    for source in load_sources(catalogue).values():
        for file in source.files if source.kind in ("url", "git-raw") else ():
            path = mirror / source.name / file.save_as
            if path.is_file():
                address = origin_url(source, file, Endpoints())
                found[unquote(address.removeprefix("https://"))] = path
    return found
