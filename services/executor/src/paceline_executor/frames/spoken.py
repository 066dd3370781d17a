"""The vocabulary of simulated and emulated engines, as the agent wants it."""

from paceline_executor.contract import Ids
from paceline_executor.simulated.language import END_ID, Language


class SpokenVocabulary:
    """Implements `backend.Vocabulary` on the simulated language."""

    chat_template: str | None = None
    eos_token_id = END_ID
    end_token_ids = frozenset({END_ID})

    def __init__(self, language: Language) -> None:
        self._language = language
        self.vocab_size = language.vocab_size
        self.longest_piece_bytes = language.longest_piece_bytes
        self.tokenizer_id = language.tokenizer_id

    def token_text(self, token: int) -> str:
        """The end token is not written."""
        return ""

    def tokenize_prompt(self, text: str) -> Ids:
        """Token ids of a prompt."""
        return self._language.tokenize_prompt(text)

    def piece(self, token: int) -> bytes:
        """Bytes of a token."""
        return self._language.pieces[token]
