"""From a run's files to its report: `report.html`, the table of numbers, the model card. Does not know torch.

    table     comparison.json → the rows of the table of numbers
    charts    events → SVG
    views     what the page and the card both show, drawn from the files
    page      report.html
    card      README.md of the saved model

Everything here reads plain JSON values and tolerates missing ones: a report of half a run shows half as much and fails
at nothing. Wording and layout are in `finetale/templates/`.
"""

from __future__ import annotations

from finetale.report.card import model_card
from finetale.report.page import render_report, write_report
from finetale.report.table import comparison_table

__all__ = ["comparison_table", "model_card", "render_report", "write_report"]
