from tokenwire.v1 import common_pb2 as _common_pb2
from tokenwire.v1 import tokenizer_pb2 as _tokenizer_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Prompt(_message.Message):
    __slots__ = ("text", "token_ids")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _common_pb2.TokenIds
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[_common_pb2.TokenIds, _Mapping]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("context", "model", "prompts", "options", "truncate", "cache_salt", "split_special_tokens", "truncation")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    SPLIT_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    context: _common_pb2.RequestContext
    model: str
    prompts: _containers.RepeatedCompositeFieldContainer[Prompt]
    options: _common_pb2.GenerationOptions
    truncate: bool
    cache_salt: str
    split_special_tokens: bool
    truncation: _tokenizer_pb2.Truncation
    def __init__(self, context: _Optional[_Union[_common_pb2.RequestContext, _Mapping]] = ..., model: _Optional[str] = ..., prompts: _Optional[_Iterable[_Union[Prompt, _Mapping]]] = ..., options: _Optional[_Union[_common_pb2.GenerationOptions, _Mapping]] = ..., truncate: bool = ..., cache_salt: _Optional[str] = ..., split_special_tokens: bool = ..., truncation: _Optional[_Union[_tokenizer_pb2.Truncation, _Mapping]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("index", "choice", "delta", "finish")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    index: int
    choice: int
    delta: Delta
    finish: _common_pb2.Finish
    def __init__(self, index: _Optional[int] = ..., choice: _Optional[int] = ..., delta: _Optional[_Union[Delta, _Mapping]] = ..., finish: _Optional[_Union[_common_pb2.Finish, _Mapping]] = ...) -> None: ...

class ChatRequest(_message.Message):
    __slots__ = ("context", "model", "conversation", "options", "truncate", "cache_salt", "split_special_tokens", "truncation")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    SPLIT_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    context: _common_pb2.RequestContext
    model: str
    conversation: _tokenizer_pb2.Conversation
    options: _common_pb2.GenerationOptions
    truncate: bool
    cache_salt: str
    split_special_tokens: bool
    truncation: _tokenizer_pb2.Truncation
    def __init__(self, context: _Optional[_Union[_common_pb2.RequestContext, _Mapping]] = ..., model: _Optional[str] = ..., conversation: _Optional[_Union[_tokenizer_pb2.Conversation, _Mapping]] = ..., options: _Optional[_Union[_common_pb2.GenerationOptions, _Mapping]] = ..., truncate: bool = ..., cache_salt: _Optional[str] = ..., split_special_tokens: bool = ..., truncation: _Optional[_Union[_tokenizer_pb2.Truncation, _Mapping]] = ...) -> None: ...

class ChatResponse(_message.Message):
    __slots__ = ("choice", "delta", "finish")
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    choice: int
    delta: Delta
    finish: _common_pb2.Finish
    def __init__(self, choice: _Optional[int] = ..., delta: _Optional[_Union[Delta, _Mapping]] = ..., finish: _Optional[_Union[_common_pb2.Finish, _Mapping]] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("text", "num_tokens", "token_ids", "logprobs", "reasoning", "tool_calls", "prompt_logprobs")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    text: str
    num_tokens: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprob]
    reasoning: str
    tool_calls: _containers.RepeatedCompositeFieldContainer[_tokenizer_pb2.ToolCall]
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprob]
    def __init__(self, text: _Optional[str] = ..., num_tokens: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[_common_pb2.TokenLogprob, _Mapping]]] = ..., reasoning: _Optional[str] = ..., tool_calls: _Optional[_Iterable[_Union[_tokenizer_pb2.ToolCall, _Mapping]]] = ..., prompt_logprobs: _Optional[_Iterable[_Union[_common_pb2.TokenLogprob, _Mapping]]] = ...) -> None: ...
