"""What is known of a remote server, which is little."""

from paceline_executor.contract import PrefixReuse
from paceline_executor.frames.backend import BackendFacts, Vocabulary
from paceline_executor.remote.config import RemoteSection

_BUILD = "remote-1"


def remote_facts(section: RemoteSection, words: Vocabulary, name: str, *, priority: bool) -> BackendFacts:
    """The facts of a server; `name` is that of its model there."""
    return BackendFacts(
        backend=f"remote-{section.dialect if section.protocol == 'openai' else section.protocol}",
        build=_BUILD,
        device="remote",
        model_hash=f"{name}/{words.tokenizer_id}",
        kv_type="remote",
        kv_bytes_per_token=0,
        tokens_per_block=0,
        prefix_reuse=PrefixReuse.NONE,
        priority=priority,
        has_rows=False,
        adapters=section.adapters,
    )
