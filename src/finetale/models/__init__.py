"""Turn a model name into a model, its tokenizer and its provenance. Knows nothing of data or training.

A name is a Hub id, a local folder, a run directory (its model/), `bundled`, or `new:SHAPE` for random weights. All
files are checked before weights are read. Weights come from safetensors only and are kept in fp32; code in a model's
folder is never run.
"""

from finetale.models import adapter_files, adapters
from finetale.models.adapted import AdaptedBase
from finetale.models.adapter_checks import check_adapters, find_adapters
from finetale.models.adapter_folders import AdapterFolder, find_adapter
from finetale.models.beginning import MARK, lead_of, mark_of, set_mark, with_lead
from finetale.models.counting import count_parameters
from finetale.models.dropout import Dropout
from finetale.models.files import is_adapter, positions_of
from finetale.models.generation import end_ids, suppressed_ids
from finetale.models.hub import holds_adapter
from finetale.models.loading import (
    LoadedModel,
    Provenance,
    adapted_sha256,
    discard,
    enable_checkpointing,
    freeze,
    is_checkpointing,
    layers,
    load,
    load_located,
    load_weights,
    save,
    tokenizer_of,
    weights_sha256,
)
from finetale.models.locating import Located, best_checkpoint, locate, locate_adapter
from finetale.models.names import BUNDLED_NAME, check_name, is_hub_id, is_new, name_of_folder, shape_of
from finetale.models.opening import open_model, warn_if_unfinished
from finetale.models.tokenizer_files import load_tokenizer, tokenizer_warning
from finetale.models.uploading import Uploaded, check_repository, upload
from finetale.models.vocabulary import NewToken, add_new_tokens, check_vocabulary, read_new_tokens

__all__ = [
    "BUNDLED_NAME",
    "MARK",
    "AdaptedBase",
    "AdapterFolder",
    "Dropout",
    "LoadedModel",
    "Located",
    "NewToken",
    "Provenance",
    "Uploaded",
    "adapted_sha256",
    "adapter_files",
    "adapters",
    "add_new_tokens",
    "best_checkpoint",
    "check_adapters",
    "check_name",
    "check_repository",
    "check_vocabulary",
    "count_parameters",
    "discard",
    "enable_checkpointing",
    "end_ids",
    "find_adapter",
    "find_adapters",
    "freeze",
    "holds_adapter",
    "is_adapter",
    "is_checkpointing",
    "is_hub_id",
    "is_new",
    "layers",
    "lead_of",
    "load",
    "load_located",
    "load_tokenizer",
    "load_weights",
    "locate",
    "locate_adapter",
    "mark_of",
    "name_of_folder",
    "open_model",
    "positions_of",
    "read_new_tokens",
    "save",
    "set_mark",
    "shape_of",
    "suppressed_ids",
    "tokenizer_of",
    "tokenizer_warning",
    "upload",
    "warn_if_unfinished",
    "weights_sha256",
    "with_lead",
]
