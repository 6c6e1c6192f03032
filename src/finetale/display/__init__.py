"""Show the events of a run: in a terminal, a log file or a notebook. Knows nothing of torch.

state       what is known of a run after its events so far
terminal    progress lines and a live panel
notebook    one block of HTML that is updated in place
"""

from finetale.display.notebook import NotebookDisplay, in_notebook
from finetale.display.terminal import Display

__all__ = ["Display", "NotebookDisplay", "in_notebook"]
