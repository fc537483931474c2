// WebSocket framing for a server on a raw socket, so that a stand-in can do what a library hides:
// choose the code of every error, and when to close the connection.

export const TEXT = 1;
export const BINARY = 2;
export const CLOSE = 8;
export const PING = 9;
export const PONG = 10;

/** An unmasked frame. */
export function frame(opcode, payload = Buffer.alloc(0)) {
  const size = payload.length;
  let head;
  if (size < 126) {
    head = Buffer.from([0x80 | opcode, size]);
  } else if (size < 65_536) {
    head = Buffer.from([0x80 | opcode, 126, size >> 8, size & 255]);
  } else {
    head = Buffer.alloc(10);
    head[0] = 0x80 | opcode;
    head[1] = 127;
    head.writeBigUInt64BE(BigInt(size), 2);
  }
  return Buffer.concat([head, payload]);
}

/** A close frame; without a code it is empty. */
export function closeFrame(code, reason = "") {
  if (code === null) return frame(CLOSE);
  const text = Buffer.from(reason);
  return frame(CLOSE, Buffer.concat([Buffer.from([code >> 8, code & 255]), text]));
}

/** What the peer did wrong, as the code of the close frame that answers it. */
export class ProtocolError extends Error {
  constructor(code, what) {
    super(what);
    this.code = code;
  }
}

const utf8 = new TextDecoder("utf-8", { fatal: true });

function text(bytes) {
  try {
    return utf8.decode(bytes);
  } catch {
    throw new ProtocolError(1007, "not UTF-8");
  }
}

/** `{ code, reason }` of a close frame's payload; the code is null where there is none. */
function closeBody(payload) {
  if (payload.length === 0) return { code: null, reason: "" };
  if (payload.length === 1) throw new ProtocolError(1002, "half a close code");
  return { code: payload.readUInt16BE(0), reason: text(payload.subarray(2)) };
}

/** Turns a client's bytes into messages and control frames. `push` throws ProtocolError. */
export class FrameReader {
  /** `limit` bounds a frame (with its header where `countHeader`) and a message. */
  constructor({ limit, countHeader, on }) {
    Object.assign(this, { limit, countHeader, on });
    this.bytes = Buffer.alloc(0);
    this.waiting = [];
    this.wanted = 2;
    this.fragments = null;
  }

  push(bytes) {
    this.waiting.push(bytes);
    const held = this.waiting.reduce((sum, part) => sum + part.length, this.bytes.length);
    if (held < this.wanted) return;
    this.bytes = Buffer.concat([this.bytes, ...this.waiting]);
    this.waiting = [];
    while (this.#one());
  }

  /** Handles one frame; false if it is not whole yet. */
  #one() {
    const have = this.bytes.length;
    this.wanted = 2;
    if (have < 2) return false;
    const [first, second] = this.bytes;
    const opcode = first & 15;
    if (first & 0x70) throw new ProtocolError(1002, "a reserved bit");
    if (!(second & 0x80)) throw new ProtocolError(1002, "not masked");
    let size = second & 127;
    let header = 6;
    if (opcode >= 8 && (size > 125 || !(first & 0x80))) throw new ProtocolError(1002, "a long control frame");
    if (size >= 126) {
      const wide = size === 127;
      header += wide ? 8 : 2;
      this.wanted = header;
      if (have < header) return false;
      size = wide ? Number(this.bytes.readBigUInt64BE(2)) : this.bytes.readUInt16BE(2);
    }
    const counted = this.countHeader ? size + header : size;
    const before = this.fragments?.size ?? 0;
    if (counted > this.limit || (opcode < 8 && before + size > this.limit)) {
      throw new ProtocolError(1009, "too large");
    }
    this.wanted = header + size;
    if (have < this.wanted) return false;
    const payload = Buffer.from(this.bytes.subarray(header, header + size));
    for (let i = 0; i < size; i += 1) payload[i] ^= this.bytes[header - 4 + (i & 3)];
    this.bytes = this.bytes.subarray(header + size);
    this.#frame(opcode, Boolean(first & 0x80), payload);
    return true;
  }

  #frame(opcode, last, payload) {
    if (opcode === PING || opcode === PONG) return this.on(opcode, payload);
    if (opcode === CLOSE) return this.on(CLOSE, closeBody(payload));
    if (opcode > 2) throw new ProtocolError(1002, "a reserved opcode");
    if ((opcode === 0) !== (this.fragments !== null)) throw new ProtocolError(1002, "fragments out of order");
    this.fragments ??= { opcode, parts: [], size: 0 };
    this.fragments.parts.push(payload);
    this.fragments.size += payload.length;
    if (!last) return undefined;
    const whole = Buffer.concat(this.fragments.parts);
    const kind = this.fragments.opcode;
    this.fragments = null;
    return this.on(kind, kind === TEXT ? text(whole) : whole);
  }
}
