// Many requests on one stream: docs/session.md of Tokenwire. Goes on with a new stream when the server drains; what was on
// a stream that breaks fails with its status.

import type { ClientDuplexStream } from "@grpc/grpc-js";
import { errorOf, TokenwireError } from "./errors.js";
import type { GenerationServiceClient } from "./generated/tokenwire/v1/GenerationService.js";
import type { Hello__Output } from "./generated/tokenwire/v1/Hello.js";
import type { SessionRequest } from "./generated/tokenwire/v1/SessionRequest.js";
import type { SessionResponse__Output } from "./generated/tokenwire/v1/SessionResponse.js";
import type { TextRequest } from "./generated/tokenwire/v1/TextRequest.js";
import { Output, type Up } from "./output.js";

const PROTOCOL_VERSION = 1;
const LAST_FIRST_HANDLE = 2 ** 32 - 1 - 1024; // past it a new stream takes over

type Frame = Required<Pick<SessionRequest, "submits" | "cancels" | "credits">>;

const emptyFrame = (): Frame => ({ submits: [], cancels: [], credits: [] });

/** One stream of a session. */
class Link implements Up {
  readonly outputs = new Map<number, Output>();
  readonly hello: Promise<Hello__Output>;
  next = 1;
  left = false;
  #pending = emptyFrame();
  #scheduled = false;
  #greeted!: (hello: Hello__Output) => void;
  #refused!: (error: TokenwireError) => void;

  constructor(
    private readonly call: ClientDuplexStream<SessionRequest, SessionResponse__Output>,
    private readonly changed: (link: Link, ended: number) => void,
  ) {
    this.hello = new Promise((resolve, reject) => {
      this.#greeted = resolve;
      this.#refused = reject;
    });
    this.hello.catch(() => {}); // whoever submits hears of it
    call.on("data", (frame: SessionResponse__Output) => this.#take(frame));
    call.on("error", (error) => this.#lose(errorOf(error)));
    call.on("end", () => this.#lose(new TokenwireError("UNAVAILABLE", "the server ended the session", "SESSION_ENDED")));
    call.write({ hello: { protocolVersion: PROTOCOL_VERSION, peer: "tokenwire-node" } });
  }

  submit(request: TextRequest, number: number, credit: number | undefined): Output[] {
    const handle = this.next;
    this.next += number;
    const outputs = Array.from({ length: number }, (_, choice) => new Output(this, handle + choice, credit));
    outputs.forEach((output, choice) => this.outputs.set(handle + choice, output));
    this.#pending.submits.push({ handle, request, ...(credit === undefined ? {} : { initialCredit: credit }) });
    this.#schedule();
    if (this.next > LAST_FIRST_HANDLE) this.leave();
    return outputs;
  }

  cancel(handle: number): void {
    this.#pending.cancels.push({ handle, reason: "CANCEL_REASON_CLIENT" });
    this.#schedule();
  }

  grant(handle: number, tokens: number): void {
    this.#pending.credits.push({ handle, tokens });
    this.#schedule();
  }

  /** New requests go elsewhere; this stream runs out. */
  leave(): void {
    this.left = true;
    this.changed(this, 0);
    this.#schedule();
  }

  close(): void {
    this.call.cancel();
  }

  /** What is asked for in one turn of the event loop goes up in one frame. */
  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      const frame = this.#pending;
      this.#pending = emptyFrame();
      if (frame.submits.length + frame.cancels.length + frame.credits.length > 0) this.call.write(frame);
      if (this.left && this.outputs.size === 0) this.call.end();
    });
  }

  #take(frame: SessionResponse__Output): void {
    if (frame.hello) {
      if (frame.hello.protocolVersion === PROTOCOL_VERSION) this.#greeted(frame.hello);
      else {
        const message = `the server speaks session protocol ${frame.hello.protocolVersion}`;
        this.#refused(new TokenwireError("FAILED_PRECONDITION", message, "PROTOCOL_VERSION"));
        this.close();
      }
    }
    frame.handles.forEach((handle, row) =>
      this.outputs.get(handle)?.add({ text: frame.texts[row]!, numTokens: frame.numTokens[row]! }),
    );
    let ended = 0;
    for (const finish of frame.finishes) {
      const output = this.outputs.get(finish.handle);
      if (output === undefined) continue;
      this.outputs.delete(finish.handle);
      output.end(finish);
      ended += 1;
    }
    if (frame.drain) this.left = true;
    if (ended > 0 || frame.drain) {
      this.changed(this, ended);
      if (this.left) this.#schedule();
    }
  }

  #lose(error: TokenwireError): void {
    this.left = true;
    this.#refused(error);
    const lost = [...this.outputs.values()];
    this.outputs.clear();
    lost.forEach((output) => output.lose(error));
    this.changed(this, lost.length);
  }
}

export class Session {
  #link?: Link;
  #links = new Set<Link>();
  #open = 0;
  #waiters: (() => void)[] = [];
  #turn: Promise<unknown> = Promise.resolve();
  #closed = false;

  constructor(
    private readonly stub: GenerationServiceClient,
    private readonly maxOpen: number,
  ) {}

  /**
   * Sends a request and returns its outputs, one per choice. Waits while there is no room, in order. `credit`: most tokens of an
   * output that are sent before they are read; reading grants more, unless it is 0. Undefined: no limit.
   */
  submit(request: TextRequest, credit?: number): Promise<Output[]> {
    const submitted = this.#turn.then(() => this.#submit(request, credit));
    this.#turn = submitted.catch(() => {});
    return submitted;
  }

  /** The whole text of one prompt. */
  async text(prompt: string, request: Omit<TextRequest, "text"> = {}): Promise<string> {
    const [output] = await this.submit({ ...request, text: prompt });
    return output!.whole();
  }

  /** Cancels what is open and ends the streams. */
  close(): void {
    this.#closed = true;
    this.#links.forEach((link) => link.close());
    this.#wakeAll();
  }

  async #submit(request: TextRequest, credit: number | undefined): Promise<Output[]> {
    const number = Math.max(1, request.options?.numChoices ?? 1);
    for (;;) {
      if (this.#closed) throw new TokenwireError("UNAVAILABLE", "the session is closed", "SESSION_CLOSED");
      const link = (this.#link ??= this.#connect());
      const { maxRequests } = await link.hello;
      const limit = Math.min(this.maxOpen, maxRequests || this.maxOpen);
      if (number > limit) throw new RangeError(`${number} choices are not allowed: at most ${limit} may be open`);
      if (this.#link !== link) continue;
      if (this.#open + number <= limit) {
        this.#open += number;
        return link.submit(request, number, credit);
      }
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
  }

  #connect(): Link {
    const link = new Link(this.stub.Session(), (changed, ended) => {
      this.#open -= ended;
      if (changed.left) {
        if (this.#link === changed) this.#link = undefined;
        if (changed.outputs.size === 0) this.#links.delete(changed);
      }
      this.#wakeAll();
    });
    this.#links.add(link);
    return link;
  }

  #wakeAll(): void {
    const waiters = this.#waiters;
    this.#waiters = [];
    waiters.forEach((wake) => wake());
  }
}
