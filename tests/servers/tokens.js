// The tokens of all test applications: a JWT with a shared secret, as the applications themselves
// verify it. The Python and the Ruby application do the same with their own libraries.

import { createHmac } from "node:crypto";

export const SECRET = "a-secret-that-only-the-tests-use-0123456789abcdef";

const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
const sign = (text, secret) => createHmac("sha256", secret).update(text).digest("base64url");

/** A token that is over in so many seconds. */
export function token(subject = "alice", seconds = 3600, secret = SECRET) {
  const exp = Math.floor(Date.now() / 1000) + seconds;
  const text = `${encode({ alg: "HS256", typ: "JWT" })}.${encode({ sub: subject, exp })}`;
  return `${text}.${sign(text, secret)}`;
}

/** One of the wrong key. */
export const forged = (subject) => token(subject, 3600, "x".repeat(48));

/** The token's subject, or null. */
export function subjectOf(value) {
  const [head, body, signature] = String(value ?? "").split(".");
  if (!signature || sign(`${head}.${body}`, SECRET) !== signature) return null;
  const { sub, exp } = JSON.parse(Buffer.from(body, "base64url"));
  return exp > Date.now() / 1000 ? sub : null;
}
