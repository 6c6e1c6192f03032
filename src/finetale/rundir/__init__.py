"""The run directory: where things lie in it, and how they are written so that a crash leaves no half of one.

layout      the paths in a run directory, its lock and its manifest
atomic      files and folders that appear whole or not at all
seals       SHA-256 of the files of a folder, written last and verified
jsonfiles   JSON files
"""

from finetale.rundir.atomic import recover, sync_folder, temporary_name, write_bytes, write_folder
from finetale.rundir.jsonfiles import read_json, read_record, write_json, write_record
from finetale.rundir.layout import LOCK_NAME, RunDirectory
from finetale.rundir.seals import (
    MANIFEST_NAME,
    add_file,
    is_sealed,
    sealed_sums,
    sha256_of,
    verify_folder,
    write_sealed_folder,
)

__all__ = [
    "LOCK_NAME",
    "MANIFEST_NAME",
    "RunDirectory",
    "add_file",
    "is_sealed",
    "read_json",
    "read_record",
    "recover",
    "sealed_sums",
    "sha256_of",
    "sync_folder",
    "temporary_name",
    "verify_folder",
    "write_bytes",
    "write_folder",
    "write_json",
    "write_record",
    "write_sealed_folder",
]
