"""A report as a file: CSV and XLSX, both with exact decimals; no cell of either can be a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from openpyxl import Workbook
from openpyxl.cell import WriteOnlyCell
from openpyxl.styles import Font

from relay.reports import Figures
from relay.usage_report import Report
from relay_site.display import usd_plain

BOM = "\ufeff"  # without it Excel takes UTF-8 for something else
DANGEROUS = ("=", "+", "-", "@", "\t", "\r", "\n")
# Heading -> figure; money in nano-dollars becomes dollars with nine places.
COLUMNS: Sequence[tuple[str, str]] = (
    ("calls", "calls"),
    ("errors", "errors"),
    ("refused", "refused"),
    ("input_tokens", "input_tokens"),
    ("cache_read_input_tokens", "cache_read_input_tokens"),
    ("cache_creation_5m_input_tokens", "cache_creation_5m_input_tokens"),
    ("cache_creation_1h_input_tokens", "cache_creation_1h_input_tokens"),
    ("output_tokens", "output_tokens"),
    ("reasoning_tokens", "reasoning_tokens"),
    ("cost_usd", "cost_nanos"),
    ("estimated_calls", "estimated_calls"),
    ("estimated_cost_usd", "estimated_cost_nanos"),
    ("unpriced_calls", "unpriced_calls"),
)


def is_money(figure: str) -> bool:
    return figure.endswith("_nanos")


def harmless(text: str) -> str:
    """Text that a spreadsheet could run gets an apostrophe in front, as OWASP advises."""
    return f"'{text}" if text.startswith(DANGEROUS) else text


def headings(report: Report) -> list[str]:
    return [*(harmless(name) for name in report.headings), *(name for name, _ in COLUMNS)]


def to_csv(report: Report) -> Iterator[str]:
    """Yield the file line by line; no total, so that adding a column up gives it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(headings(report))
    yield BOM + taken(buffer)
    for row in report.rows:
        names = [harmless(cell.text) for cell in row.cells]
        writer.writerow([*names, *(plain(row.figures, figure) for _, figure in COLUMNS)])
        yield taken(buffer)


def taken(buffer: io.StringIO) -> str:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text


def plain(figures: Figures, figure: str) -> str:
    return usd_plain(figures[figure]) if is_money(figure) else str(figures[figure])


def to_xlsx(report: Report) -> bytes:
    """Return a workbook of one sheet, with a total at its end."""
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Usage")
    sheet.freeze_panes = "A2"
    bold = Font(bold=True)
    sheet.append([text_cell(sheet, name, font=bold) for name in headings(report)])
    for row in report.rows:
        names = [text_cell(sheet, cell.text) for cell in row.cells]
        sheet.append([*names, *(number_cell(sheet, row.figures, figure) for _, figure in COLUMNS)])
    total = [text_cell(sheet, "Total" if index == 0 else "", font=bold) for index in range(len(report.headings))]
    sheet.append([*total, *(number_cell(sheet, report.total, figure) for _, figure in COLUMNS)])
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def text_cell(sheet: Any, text: str, *, font: Font | None = None) -> Any:
    """A cell that is text whatever it begins with."""
    cell = WriteOnlyCell(sheet, value=text)
    cell.data_type = "s"
    if font is not None:
        cell.font = font
    return cell


def number_cell(sheet: Any, figures: Figures, figure: str) -> Any:
    """A number; openpyxl would write money with 16 digits, so its digits go in as they are."""
    if not is_money(figure):
        return figures[figure]
    cell = WriteOnlyCell(sheet, value=usd_plain(figures[figure]))
    cell.data_type = "n"
    cell.number_format = "0.000000000"
    return cell
