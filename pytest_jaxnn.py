"""The pytest plugin. Nothing of jaxnn or JAX is imported unless --gradcheck is given."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BUDGET = 30.0  # seconds per rule


def pytest_addoption(parser: Any) -> None:
    """The options of the plugin."""
    group = parser.getgroup("gradcheck", "custom derivative rules of JAX")
    group.addoption(
        "--gradcheck",
        action="store_true",
        help="check every jax.custom_vjp and jax.custom_jvp that the tests call; a wrong one is a failed test",
    )
    group.addoption(
        "--gradcheck-allow",
        metavar="FILE",
        help="names of functions, or file:function, one per line, whose rules are not meant to be derivatives",
    )
    group.addoption(
        "--gradcheck-budget",
        metavar="SECONDS",
        type=float,
        default=BUDGET,
        help=f"seconds per rule, after which no more of its shapes are checked (default {BUDGET:g})",
    )


def pytest_configure(config: Any) -> None:
    """Registers the plugin if it is asked for."""
    if config.getoption("gradcheck"):
        config.pluginmanager.register(Plugin(config, allow_list(config)), "jaxnn-gradcheck")


def allow_list(config: Any) -> list[str]:
    """The patterns in the file that --gradcheck-allow names.

    Raises:
        pytest.UsageError: if it cannot be read.
    """
    name = config.getoption("gradcheck_allow")
    if name is None:
        return []
    try:
        text = Path(config.invocation_params.dir, name).read_text()
    except OSError as error:
        raise pytest.UsageError(f"--gradcheck-allow: {error}") from None
    return [line for line in (line.partition("#")[0].strip() for line in text.splitlines()) if line]


class Plugin:
    """Turns an observer on around the tests, and reports its findings when they have ended."""

    def __init__(self, config: Any, allow: list[str]) -> None:
        self.config, self.allow = config, allow
        self.budget: float = config.getoption("gradcheck_budget")
        self.observer: Any = None
        self.findings: list[tuple[Any, ...]] = []
        self.errors: list[str] = []

    @property
    def is_worker(self) -> bool:
        """Whether this is a worker process of pytest-xdist."""
        return hasattr(self.config, "workerinput")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Any:
        """Records calls while tests run, when tests have been collected and have configured JAX."""
        distributes = not self.is_worker and getattr(self.config.option, "dist", "no") != "no"
        if distributes or self.config.option.collectonly:
            return (yield)
        try:
            from jaxnn.gradcheck.observing import Observer

            self.observer = Observer()
        except Exception as error:
            self.errors.append(f"{type(error).__name__}: {error}")
            return (yield)
        with self.observer.on():
            return (yield)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Keeps the name of the test that runs."""
        if self.observer is not None:
            self.observer.test = nodeid

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: Any) -> None:
        """Checks the recorded calls; a worker passes the findings on, the main process reports them."""
        if self.observer is not None:
            try:
                from jaxnn.gradcheck.observing import findings

                found = findings(self.observer, self.allow, self.budget)
                self.findings += [tuple(finding) for finding in found]
                self.errors += [f"{said} ({n} times)" for said, n in self.observer.errors.items()]
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error}")
        if self.is_worker:
            self.config.workeroutput["gradcheck"] = (self.findings, self.errors)
        else:
            self._report(session)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Takes a worker's findings."""
        findings, errors = getattr(node, "workeroutput", {}).get("gradcheck", ((), ()))
        known = {finding[:4] for finding in self.findings}
        self.findings += [tuple(finding) for finding in findings if tuple(finding[:4]) not in known]
        self.errors += errors

    def _report(self, session: Any) -> None:
        wrong: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
        for finding in self.findings:
            if finding[5] == "wrong":
                wrong.setdefault((finding[0], finding[2]), []).append(finding)
        for (name, source), found in wrong.items():
            test = next((finding[4] for finding in found if finding[4]), "another rule")
            line = source.partition(" (")[0]
            title = f"gradcheck: rule {name} ({_short(line, self.config)}), first run by {test}"
            report = pytest.TestReport(
                nodeid=title,
                location=(line.rpartition(":")[0], None, title),
                keywords={},
                outcome="failed",
                longrepr=Verdict(line, found),  # type: ignore[arg-type]
                when="call",
                duration=sum(finding[7] for finding in found),
            )
            self.config.hook.pytest_runtest_logreport(report=report)
        if wrong and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """A section with the verdicts and the time."""
        if self.is_worker:
            return
        counts: dict[str, int] = {}
        for finding in self.findings:
            counts[finding[5]] = counts.get(finding[5], 0) + 1
        left = counts.pop("left", 0)
        rules = len({(finding[0], finding[2]) for finding in self.findings})
        seconds = sum(finding[7] for finding in self.findings)
        counted = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())) or "none is checked"
        terminalreporter.section("gradcheck")
        terminalreporter.write_line(
            f"{rules} custom rules at {len(self.findings)} shapes and dtypes in {seconds:.1f} s: {counted}"
        )
        if left:
            terminalreporter.write_line(f"{left} left out because of the budget of {self.budget:g} s per rule")
        for name, _, source, signature, test, verdict, text, _ in self.findings:
            line = _short(source.partition(" (")[0], self.config)
            if verdict in ("wrong", "cannot tell", "allowed", "left"):
                terminalreporter.write_line(
                    f"{verdict}: {name} {signature} ({line}), first run by {test or 'another rule'}"
                )
            if verdict == "cannot tell":
                terminalreporter.write_line("".join(f"    {part}\n" for part in text.splitlines()[4:]).rstrip("\n"))
        for error in self.errors:
            terminalreporter.write_line(f"an error of the plugin: {error}")


class Verdict:
    """The reports on a wrong rule, and a line for summaries, as pytest asks for them."""

    def __init__(self, line: str, found: list[tuple[Any, ...]]) -> None:
        path, _, number = line.rpartition(":")
        self.text = "\n\n".join(finding[6] for finding in found)
        message = f"wrong for {', '.join(finding[3] for finding in found)}"
        self.reprcrash = SimpleNamespace(path=path, lineno=int(number) if number.isdigit() else 0, message=message)

    def __str__(self) -> str:
        return self.text

    def toterminal(self, out: Any) -> None:
        """Writes the reports."""
        out.line(self.text)


def _short(line: str, config: Any) -> str:
    """A path relative to the root of the tests, if it is below that."""
    root = f"{config.rootpath}/"
    return line.removeprefix(root)
