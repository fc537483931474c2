import { createClient } from "graphql-ws";

/** A GraphQL client that shows a fresh token after its old one expired. */
export function openClient(url, getToken, options = {}) {
  let expired = false;
  return createClient({
    ...options,
    url,
    connectionParams: async () => ({ token: await getToken({ expired }) }),
    on: {
      connected: () => (expired = false),
      closed: ({ code }) => (expired ||= code === 4403),
    },
  });
}
