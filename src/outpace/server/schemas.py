"""Bodies of requests, as OpenAI's clients and those of vLLM send them.

Values are checked by kind; unknown fields stay in `model_extra`, and are refused by name or named in the answer's
header (see `asking`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Body",
    "ChatBody",
    "CompletionBody",
    "DetokenizeBody",
    "Extra",
    "Message",
    "StreamOptions",
    "TextBody",
    "TokenizeBody",
]

Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Id = Annotated[int, Field(ge=0)]


class Body(BaseModel):
    """A body that may hold fields beyond those that are known."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


class StreamOptions(Body):
    """What a stream tells beside its text.

    Attributes:
        include_usage: one more chunk at the end holds the usage.
        continuous_usage_stats: every chunk holds what was used until then.
    """

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Extra(BaseModel):
    """What Outpace takes beyond others, under the key `outpace`.

    Attributes:
        method: how to decode: it changes the speed, not the text, as long as the method is exact.
        options: settings of the method by name, and of the search.
        search: what holds several texts and returns the best; `n` says how many come back.
        draft: most tokens to draft per step; 0 = plain decoding.
        law: laws over the next token, as "NAME:key=value,..." each.
        trace: tell where each token came from, and what each step did.
        metrics: `metrics.speculative_decoding` in vLLM's form, of all steps or also of each.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    method: Annotated[str, Field(max_length=100)] | None = None
    options: dict[str, Any] = Field(default_factory=dict, max_length=50)
    search: Annotated[str, Field(max_length=100)] | None = None
    draft: Annotated[int, Field(ge=0, le=1024)] | None = None
    law: list[Annotated[str, Field(max_length=1000)]] = Field(default_factory=list, max_length=8)
    trace: bool = False
    metrics: Literal["summary", "detailed"] | None = None


class TextBody(Body):
    """What every request for a text may hold; None = not given."""

    model: str | None = None
    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: Annotated[Number, Field(ge=0)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-100, le=100)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-100, le=100)] | None = None
    logit_bias: dict[str, Number] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    # Extensions that most servers share.
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=100)] | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[Id] | None = None
    bad_words: list[str] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: Count | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    add_special_tokens: bool | None = None
    healed: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    request_id: str | None = None
    outpace: Extra | None = None


class Message(BaseModel):
    """One message of a conversation, with whatever its chat template reads."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: Annotated[str, Field(min_length=1, max_length=100)]
    content: str | list[str | dict[str, Any]] | None = None


class CompletionBody(TextBody):
    """Body of /v1/completions."""

    prompt: str | list[str] | list[Id] | list[list[Id]]
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Count | None = None
    best_of: Count | None = None


class ChatBody(TextBody):
    """Body of /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    echo: bool | None = None


class TokenizeBody(Body):
    """Body of /tokenize: vLLM's {prompt | messages}, or llama.cpp's {content}."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    content: str | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    return_token_strs: bool | None = None
    with_pieces: bool | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class DetokenizeBody(Body):
    """Body of /detokenize."""

    model: str | None = None
    tokens: list[Id]
