"""The report for people."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu.session import Figures


def lines(report: Figures) -> Iterator[str]:
    """Everything measured, a line each; what failed, with why."""
    phases = report["phases"]
    yield f"{report['device']}, torch {report['torch']}, triton {report['triton']}, {report['date']}"
    yield f"clock: {report['clock']}"
    for name, phase in phases.items():
        yield f"\n{name}: {'ok' if phase['ok'] else 'NOT OK'}, {phase['seconds']} s"
        if "error" in phase:
            yield f"  {phase['error']}"
        yield from (f"  {key}: {_short(value)}" for key, value in phase.items() if _is_figure(key, value))
        for part, found in phase.items():
            if isinstance(found, dict):
                yield from _part(part, found)


def _part(name: str, found: Figures) -> Iterator[str]:
    told = ", ".join(f"{key} {_short(value)}" for key, value in found.items() if _is_figure(key, value))
    yield f"  {name}: {told}{'' if found.get('ok', True) else '  NOT OK'}"
    if "error" in found:
        yield f"    {found['error']}"
    for key in ("eager", "graph", "rounds", "ahead"):
        if isinstance(found.get(key), dict):
            yield f"    {key}: " + ", ".join(f"{k} {_short(v)}" for k, v in found[key].items())
    for check in found.get("checks", ()):
        verdict = "" if check["error"] <= check["bound"] else "  ABOVE"
        yield f"    {check['what']:44s} error {check['error']:.2e}, bound {check['bound']:.2e}{verdict}"
    for case in found.get("cases", ()):
        yield f"    {case['case']:44s} " + ", ".join(
            f"{key} {_short(value)}"
            for key, value in case.items()
            if key not in ("case", "machine", "kernels") and value is not None
        )
    for kernel in found.get("kernels", ()):
        yield f"    {kernel['share']:5.1%} {kernel['ms']:9.4f} ms {kernel['calls']:7.1f} calls  {kernel['name']}"
    for text in (*found.get("failed", ()), *found.get("not_run", ())):
        yield f"    {text}"


def _is_figure(key: str, value: object) -> bool:
    return key not in ("ok", "seconds", "error") and isinstance(value, str | int | float)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
