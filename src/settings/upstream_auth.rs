//! `[[auth]]` blocks of `kind = "upstream"`, and what goes together on routes to WebSocket servers.

use toml::Spanned;

use super::file::{RawAuth, RawBackend, RawMessagePattern, RawRoute};
use super::load::{Loader, place};
use super::raw::{self, ListOrWord};
use super::routes::parse_path;
use super::{AuthKind, Limits, PathPattern};
use crate::protocol::acceptance::{Acceptance, MessagePattern, Preset, TopicPattern};
use crate::protocol::origin::OPAQUE;

/// Largest message of a client to a WebSocket server, unless its route says otherwise.
const SERVER_MESSAGE_MAX: u32 = 16 << 20;
/// Most patterns and topics of a block.
const PATTERNS_MAX: usize = 64;
/// Most steps of a path into a message.
const STEPS_MAX: usize = 16;

/// Subprotocols whose servers let every client in, and ask for credentials in messages.
const OPEN_SUBPROTOCOLS: &[(&str, &str)] = &[
    ("graphql-transport-ws", "graphql-transport-ws"),
    ("graphql-ws", "graphql-ws"),
    ("actioncable-v1-json", "actioncable"),
    ("v10.stomp", "stomp"),
    ("v11.stomp", "stomp"),
    ("v12.stomp", "stomp"),
];

type RawPatterns = Option<Spanned<Vec<Spanned<RawMessagePattern>>>>;

fn kind(block: &RawAuth) -> &str {
    block.kind.as_ref().map_or("", |kind| kind.get_ref())
}

impl Loader<'_> {
    /// A block of `kind = "upstream"`.
    pub(super) fn upstream_auth(&mut self, auth: &Spanned<RawAuth>) -> Option<AuthKind> {
        let raw = auth.get_ref();
        if raw.accepted_by() == "handshake" {
            for at in [
                raw.preset.as_ref().map(Spanned::span),
                raw.accepted_when.as_ref().map(Spanned::span),
                raw.refused_when.as_ref().map(Spanned::span),
                raw.accepted_topics.as_ref().map(Spanned::span),
            ] {
                let Some(at) = at else { continue };
                let what =
                    "this means nothing to accepted_by = \"handshake\", where the 101 accepts";
                self.report.error(at, what, "write accepted_by = \"message\", or remove it");
            }
            return Some(AuthKind::Upstream(None));
        }
        let at = place(&raw.accepted_by, &auth.span());
        let preset = raw.preset.as_ref().and_then(|name| Preset::from_name(name.get_ref()));
        let accepted = self.patterns(&raw.accepted_when);
        let refused = self.patterns(&raw.refused_when);
        let topics = raw.accepted_topics.iter().flat_map(|list| list.get_ref());
        let topics: Vec<_> = topics.map(|text| TopicPattern::parse(text.get_ref())).collect();
        if preset.is_none() && raw.accepted_when.is_none() {
            let what = "accepted_by = \"message\" does not say which message accepts";
            let fix = "set preset = \"phoenix\" or another, or accepted_when = [{ json = \"type\", \
                       equals = \"auth_ok\" }]";
            self.report.error(at.clone(), what, fix);
        }
        if let Some(topics) = &raw.accepted_topics
            && !preset.is_some_and(Preset::takes_topics)
        {
            let what = "accepted_topics has no use without a preset that has topics";
            self.report.error(topics.span(), what, "remove it, or set preset = \"phoenix\"");
        }
        let needs_topics = preset.is_some_and(Preset::needs_topics) && raw.accepted_when.is_none();
        if needs_topics && topics.is_empty() {
            let what = "this preset needs accepted_topics: a join of a public topic proves nothing";
            let fix = "list those that only signed-in clients may join, as in [\"room:*\"], or [\"*\"] \
                       where every join is checked";
            self.report.error(place(&raw.preset, &at), what, fix);
        }
        if topics.len() > PATTERNS_MAX {
            let what = format!("there are more than {PATTERNS_MAX} topics");
            self.report.error(place(&raw.accepted_topics, &at), what, "write prefixes: room:*");
        }
        let acceptance = Acceptance { preset, accepted: accepted?, refused: refused?, topics };
        Some(AuthKind::Upstream(Some(acceptance.into())))
    }

    fn patterns(&mut self, list: &RawPatterns) -> Option<Vec<MessagePattern>> {
        let Some(list) = list else { return Some(Vec::new()) };
        if list.get_ref().is_empty() || list.get_ref().len() > PATTERNS_MAX {
            let what = format!("there are {} patterns", list.get_ref().len());
            self.report.error(list.span(), what, &format!("write 1 to {PATTERNS_MAX}"));
            return None;
        }
        let built: Vec<_> = list.get_ref().iter().map(|pattern| self.pattern(pattern)).collect();
        built.into_iter().collect()
    }

    fn pattern(&mut self, pattern: &Spanned<RawMessagePattern>) -> Option<MessagePattern> {
        let RawMessagePattern { json, equals, prefix } = pattern.get_ref();
        let (what, at) = match (json, prefix) {
            (Some(json), None) => {
                let steps: Vec<String> = json.get_ref().split('.').map(str::to_owned).collect();
                if !steps.iter().any(String::is_empty) && steps.len() <= STEPS_MAX {
                    let equals = equals.as_ref().map(|text| text.get_ref().clone());
                    return Some(MessagePattern::Json { path: steps, equals });
                }
                ("this is no path of names and indexes with dots between them", json.span())
            }
            (None, Some(prefix)) => {
                if let Some(equals) = equals {
                    let what = "equals means nothing beside prefix";
                    self.report.error(equals.span(), what, "remove it");
                }
                if !prefix.get_ref().is_empty() {
                    return Some(MessagePattern::Prefix(prefix.get_ref().clone()));
                }
                ("every message has an empty prefix", prefix.span())
            }
            _ => ("a pattern has either json or prefix", pattern.span()),
        };
        let fix = "write { json = \"4.status\", equals = \"ok\" } or { prefix = \"CONNECTED\" }";
        self.report.error(at, what, fix);
        None
    }

    /// What a route and its blocks need of the backend behind them.
    pub(super) fn check_behind(
        &mut self,
        route: &Spanned<RawRoute>,
        blocks: &[&RawAuth],
        backend: Option<&RawBackend>,
    ) {
        let (raw, Some(backend)) = (route.get_ref(), backend) else { return };
        let is_server = backend.kind() == "websocket";
        let at = place(&raw.auth, &route.span());
        let upstream = blocks.iter().position(|block| kind(block) == "upstream");
        if let Some(index) = upstream {
            if !is_server {
                let what = "kind = \"upstream\" has no meaning for a backend of kind = \"link\", which \
                            sees only clients that are let in";
                let fix = "use kind = \"backend\" here, or a backend of kind = \"websocket\"";
                self.report.error(at.clone(), what, fix);
            }
            if index + 1 != blocks.len() {
                let what = "a block of kind = \"upstream\" judges every client, so none behind it would \
                            be asked";
                self.report.error(at.clone(), what, "name it last, or alone");
            }
            self.check_open_handshake(route, blocks[index]);
        }
        if is_server && blocks.iter().any(|block| kind(block) == "backend") {
            let what = "kind = \"backend\" is asked over a link, and this route's backend is a \
                        WebSocket server";
            let fix = "use kind = \"upstream\", where the application itself judges its clients, or \
                       kind = \"http\"";
            self.report.error(at, what, fix);
        }
        if is_server {
            self.check_cookies_behind(raw);
            if let Some(list) = raw.forward_headers.as_ref().filter(|l| !l.get_ref().is_empty()) {
                let what = "forward_headers has no use: a WebSocket server gets all headers";
                self.report.error(list.span(), what, "remove it");
            }
        } else if let Some(cookies) = &raw.cookies {
            let what = "cookies has no use: a backend of kind = \"link\" gets none";
            self.report.error(cookies.span(), what, "remove it");
        }
    }

    /// Some servers answer 101 to every client: that must not count as an authentication.
    fn check_open_handshake(&mut self, route: &Spanned<RawRoute>, block: &RawAuth) {
        if block.accepted_by() != "handshake" {
            return;
        }
        let raw = route.get_ref();
        let dialect = [("graphql-transport-ws", "graphql-transport-ws"), ("pusher", "pusher")];
        let by_dialect = dialect.iter().find(|(name, _)| *name == raw.dialect());
        let offered = raw.subprotocols.iter().flat_map(|list| list.get_ref());
        let by_subprotocol = || {
            let mut known = offered.flat_map(|offer| {
                OPEN_SUBPROTOCOLS.iter().find(|(name, _)| name == offer.get_ref())
            });
            known.next()
        };
        let Some((name, preset)) = by_dialect.or_else(by_subprotocol) else { return };
        let what = format!(
            "accepted_by = \"handshake\" with {name}: its servers answer 101 to every client, and ask \
             for credentials in messages"
        );
        let fix =
            format!("write accepted_by = \"message\" and preset = \"{preset}\" in the [[auth]]");
        self.report.error(place(&raw.auth, &route.span()), what, &fix);
    }

    /// Cookies reach the application, which may take its clients for their owners.
    fn check_cookies_behind(&mut self, raw: &RawRoute) {
        if raw.cookies() == "strip" {
            return;
        }
        let Some(origins) = &raw.origins else { return };
        let fix = "list the origins, or write cookies = \"strip\" if the application needs none";
        let list = match origins.get_ref() {
            ListOrWord::Word => {
                let what = "origins = \"any\" where the application gets cookies: every page on the \
                            internet could connect as the visitor, since browsers add cookies by \
                            themselves (cross-site WebSocket hijacking)";
                self.report.error(origins.span(), what, fix);
                return;
            }
            ListOrWord::List(list) => list,
        };
        for text in list.iter().filter(|text| OPAQUE.contains(&text.get_ref().as_str())) {
            let what = format!(
                "origin {:?} where the application gets cookies: sandboxed pages of every site have \
                 it, and browsers add cookies by themselves (cross-site WebSocket hijacking)",
                text.get_ref()
            );
            self.report.error(text.span(), what, fix);
        }
    }

    /// What a route strips of its paths, and its largest message.
    pub(super) fn behind(
        &mut self,
        raw: &RawRoute,
        path: Option<&PathPattern>,
        backend: Option<&RawBackend>,
        limits: &Limits,
    ) -> Option<(String, Option<u32>)> {
        let is_server = backend?.kind() == "websocket";
        let written = raw::size(&raw.message_max, "").and_then(|size| u32::try_from(size).ok());
        let message_max = written.or(is_server.then_some(SERVER_MESSAGE_MAX));
        if !is_server && message_max.is_some_and(|size| size > limits.message_max) {
            let what = "message_max is above limits.message_max, which the link agreed on";
            self.report.error(place(&raw.message_max, &(0..0)), what, "raise that one, too");
        }
        let Some(text) = &raw.strip_prefix else { return Some((String::new(), message_max)) };
        let prefix = text.get_ref().strip_suffix('/').unwrap_or(text.get_ref());
        let of_path = |path: &PathPattern| {
            let (PathPattern::Exact(path) | PathPattern::Prefix(path)) = path;
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let (what, fix) = if !is_server {
            ("strip_prefix has no use: a backend of kind = \"link\" gets the path", "remove it")
        } else if !matches!(parse_path(prefix), Some(PathPattern::Exact(_))) {
            ("strip_prefix is not a path", "write /PATH, which the route's path begins with")
        } else if path.is_some_and(|path| !of_path(path)) {
            ("the route's path does not begin with strip_prefix", "write whole segments of it")
        } else {
            return Some((prefix.to_owned(), message_max));
        };
        self.report.error(text.span(), what, fix);
        None
    }
}
