"""The figures as one table."""

from __future__ import annotations

from rich.table import Table

from bench.figure import Bar, Figure


def table(figures: list[tuple[str, Figure]]) -> Table:
    """Measured, against what, ratio, bar, verdict; figures come with their measurement's name."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    shown.add_column("", no_wrap=True)
    shown.add_column("measured", justify="right")
    shown.add_column("unit")
    shown.add_column("low … high", justify="right")
    shown.add_column("against", justify="right")
    shown.add_column("")
    shown.add_column("ratio", justify="right")
    shown.add_column("bar", justify="right")
    shown.add_column("")
    last = ""
    for measurement, figure in figures:
        if measurement != last:
            shown.add_row(f"[bold]{measurement}")
            last = measurement
        against = figure.baseline
        shown.add_row(
            f"  {figure.name}",
            number(figure.value),
            figure.unit,
            f"{number(min(figure.rounds))} … {number(max(figure.rounds))}" if len(figure.rounds) > 1 else "",
            number(against.value) if against else "",
            against.name if against else "",
            f"{figure.ratio:.3f}" if figure.ratio is not None else "",
            words(figure.bar),
            verdict(figure.ok),
        )
    return shown


def number(value: float) -> str:
    """Three digits that count, or all there are before the point."""
    return f"{value:.{max(0, 3 - len(str(int(abs(value)))))}f}" if value != int(value) else f"{value:.0f}"


def words(bar: Bar | None) -> str:
    """The bar, as a reader says it."""
    if bar is None:
        return ""
    sign = {"<=": "≤", ">=": "≥", "==": "="}[bar.sign]
    return f"{sign} {bar.limit:g}" + (" ×" if bar.of == "ratio" else "")


def verdict(ok: bool | None) -> str:
    """In a word, and in colour."""
    return {True: "[green]holds", False: "[bold red]missed", None: ""}[ok]
