"""A table as CSV and LaTeX is read back cell by cell."""

from __future__ import annotations

import csv
import io
import re

from equirelax_lab.report.numbers import Numbers

NUMBERS = Numbers(
    "Test MSE, mean: 100 % of [it]",
    ("method", "a_b & c$", "bold", "x {y} \\ ~ ^ #"),
    (
        ("strict", "5.91 ± 0.17", "**-0.06 ± 0.11** [-0.35, +0.22]", "6.6e-16 → 5e-16"),
        ("[ace lie_weight=5e-05]", "n/a", "", "no: <script> | ×"),
        ("*", "1,234 (5,678)", "-2", "a-1 …"),
    ),
)
MARKS = {
    **{r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textbar{}": "|"},
    **{r"\textless{}": "<", r"\textgreater{}": ">", r"$\pm$": "±", r"$\to$": "→", r"$\times$": "×"},
    **{r"\ldots{}": "…", "$-$": "-"},
}


def read_latex(text: str) -> tuple[str, list[list[str]]]:
    """(alignment, cells of every line) of a tabular environment, as LaTeX would read it."""
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    begun = re.fullmatch(
        r"\\begin\{tabular\}\{([lr]+)\}\n\\toprule\n(.*?)\\\\\n\\midrule\n(.*?)\\bottomrule\n\\end\{tabular\}",
        body,
        flags=re.DOTALL,
    )
    assert begun is not None, text
    lines = [begun[2], *re.split(r"(?<!\\)\\\\(?:\n|$)", begun[3])]
    assert not any(line.lstrip().startswith(("[", "*")) for line in lines)
    return begun[1], [
        [_plain(cell) for cell in re.split(r"(?<!\\)&", line)] for line in lines if line.strip()
    ]


def _plain(cell: str) -> str:
    text = re.sub(r"\\textbf\{(.*?)\}", r"\1", cell.strip().removeprefix("{}"))
    text = re.sub(
        r"\$(-?[\d.]+)\\times10\^\{(-?\d+)\}\$",
        lambda m: f"{m[1]}e{'-' if int(m[2]) < 0 else '+'}{abs(int(m[2])):02d}",
        text,
    )
    for mark, plain in MARKS.items():
        text = text.replace(mark, plain)
    return re.sub(r"\\([&%$#_{}])", r"\1", text)


def cells() -> list[list[str]]:
    return [[cell.replace("**", "") for cell in line] for line in (NUMBERS.head, *NUMBERS.rows)]


def test_a_table_as_csv_is_read_back() -> None:
    assert list(csv.reader(io.StringIO(NUMBERS.csv()))) == cells()


def test_a_table_as_latex_is_read_back() -> None:
    aligned, found = read_latex(NUMBERS.latex())
    assert found == cells()
    assert aligned == "lrrl"  # numbers to the right
    assert r"\textbf{$-$0.06 $\pm$ 0.11}" in NUMBERS.latex()
    assert r"lie\_weight=$5\times10^{-5}$" in NUMBERS.latex()


def test_the_name_of_a_table_is_that_of_a_file() -> None:
    assert NUMBERS.name == "test-mse"
    assert Numbers("Further metrics, and what", (), ()).name == "further-metrics"
    assert Numbers("%", ("a",), ()).name == "table"
