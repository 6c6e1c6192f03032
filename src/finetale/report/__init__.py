"""From the records of a run to its report: `report.html`, the table of figures, the model card. Does not know torch.

    table       comparison → the rows of the table of figures
    charts      events → SVG
    views       what the page and the card both show
    page        report.html
    card        README.md of the saved model

Wording and layout are in `finetale/templates/`. A record that is absent makes its sections absent.
"""

from __future__ import annotations

from finetale.report.card import export_card, model_card
from finetale.report.page import render_report, write_report

__all__ = ["export_card", "model_card", "render_report", "write_report"]
