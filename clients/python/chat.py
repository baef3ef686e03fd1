"""A conversation, streamed: python clients/python/chat.py [HOST:PORT]."""

import sys

from tokenwire.client import Client, Finished, Message, TextDelta

target = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"
conversation = [Message("system", "You answer in one sentence."), Message("user", "What is the capital of France?")]

with Client(target) as client, client.chat(conversation, temperature=0, max_tokens=64) as stream:
    for event in stream:
        match event:
            case TextDelta(text=text):
                print(text, end="", flush=True)
            case Finished(terminal=terminal):
                print(f"\n({terminal.reason.value}, {terminal.usage.completion_tokens} tokens)")
