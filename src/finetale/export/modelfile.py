"""Write the Modelfile of Ollama: template, stop strings and sampling settings of a model."""
from __future__ import annotations

from finetale.models import LoadedModel


def modelfile(file: str, loaded: LoadedModel) -> str:
    """Return the content of a Modelfile for a GGUF file in the same folder."""
    return f"FROM ./{file}\nTEMPLATE \"\"\"{{{{ .Prompt }}}}\"\"\"\n"
