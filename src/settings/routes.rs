//! `[[route]]` blocks: references, paths, and what makes an origin policy safe.

use std::ops::Range;

use toml::Spanned;

use super::file::{RawAuth, RawRoute, RawSettings};
use super::load::{Loader, Names, place};
use super::raw::{List, ListOrWord};
use super::{Limits, PathPattern, ROUTE_AUTHS_MAX, Route};
use crate::protocol::dialect::Dialect;
use crate::protocol::forwarded::is_claim;
use crate::protocol::host::HostPattern;
use crate::protocol::origin::{OPAQUE, OriginPolicy};
use crate::protocol::verifier::{NoAuthentication, VisitorsWelcome};

/// Routes of one gateway: they are tried in order, at every upgrade.
const ROUTES_MAX: usize = 1024;

/// Fields that carry credentials or belong to the connection: a backend never gets them.
const HEADERS_WITHHELD: &[&str] = &[
    "authorization",
    "proxy-authorization",
    "connection",
    "upgrade",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "content-length",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-extensions",
    "sec-websocket-protocol",
];

impl Loader<'_> {
    /// Every `[[route]]`; `None` when one of them cannot be used.
    pub(super) fn routes(
        &mut self,
        raw: &RawSettings,
        auths: &Names,
        backends: &Names,
        limits: &Limits,
    ) -> Option<Vec<Route>> {
        if let Some(route) = raw.route.get(ROUTES_MAX) {
            let what = format!("there are more than {ROUTES_MAX} routes");
            self.report.error(route.span(), what, "");
        }
        self.report_unused(raw);
        let mut paths: Vec<(PathPattern, Vec<HostPattern>)> = Vec::new();
        let mut built = Vec::new();
        for route in &raw.route {
            let hosts = self.hosts(&route.get_ref().hosts);
            let path = route.get_ref().path.as_ref().and_then(|text| {
                let covering = |(_, theirs): &&(PathPattern, Vec<HostPattern>)| {
                    theirs.is_empty() || hosts.as_ref().is_none_or(|ours| covers(theirs, ours))
                };
                let earlier: Vec<_> = paths.iter().filter(covering).map(|(path, _)| path).collect();
                self.path(text, &earlier)
            });
            paths.extend(path.clone().zip(hosts.clone()));
            let asked = self.route_auths(route.get_ref(), auths);
            let backend = self.route_backend(route.get_ref(), backends);
            let block = |&index: &u16| raw.auth[usize::from(index)].get_ref();
            let blocks: Vec<&RawAuth> = asked.iter().flatten().map(block).collect();
            let behind = backend.map(|index| raw.backend[usize::from(index)].get_ref());
            self.check_cookies(route, &blocks);
            self.check_open(route, asked.as_deref());
            self.check_visitors(route.get_ref(), &blocks);
            self.check_refuse(route, &blocks);
            self.check_same_host(route.get_ref());
            self.check_behind(route, &blocks, behind);
            let rest = self.behind(route.get_ref(), path.as_ref(), behind, limits);
            built.push(self.route(route.get_ref(), (path, hosts), asked, backend, &blocks, rest));
        }
        self.check_route_names(raw);
        built.into_iter().collect()
    }

    /// Names tell routes apart in metrics and for backends.
    fn check_route_names(&mut self, raw: &RawSettings) {
        let mut taken: Vec<&str> = Vec::new();
        for route in &raw.route {
            let RawRoute { name, path, .. } = route.get_ref();
            let Some(text) = name.as_ref().or(path.as_ref()) else { continue };
            let proper = name.as_ref().is_none_or(|name| self.is_name("route", name));
            // Two routes with one path are reported for that already.
            let is_new = name.is_some() || !self.report.has_errors();
            if proper && is_new && taken.contains(&text.get_ref().as_str()) {
                let what = format!("two routes have the name {:?}", text.get_ref());
                self.report.error(text.span(), what, "give one of them another name");
            }
            taken.push(text.get_ref());
        }
    }

    fn route(
        &mut self,
        raw: &RawRoute,
        (path, hosts): (Option<PathPattern>, Option<Vec<HostPattern>>),
        auths: Option<Vec<u16>>,
        backend: Option<u16>,
        blocks: &[&RawAuth],
        behind: Option<(String, Option<u32>)>,
    ) -> Option<Route> {
        let origins = raw.origins.as_ref().and_then(|origins| self.origins(origins));
        let subprotocols = self.subprotocols(&raw.subprotocols);
        let forward_headers = self.forward_headers(&raw.forward_headers, blocks);
        let closes = self.closes(&raw.closes);
        let reauthenticate = self.reauthenticate(raw, blocks);
        let name = raw.name.as_ref().or(raw.path.as_ref());
        let (strip_prefix, message_max) = behind?;
        Some(Route {
            name: name?.get_ref().clone(),
            path: path?,
            hosts: hosts?,
            origins: origins?,
            origin_absent_allowed: raw.origin_absent() == "allow",
            auths: auths?,
            no_authentication: written_out_none(raw),
            visitors: visitors(raw),
            backend: backend?,
            dialect: Dialect::from_name(raw.dialect()),
            closes: closes?,
            refuse: raw.refuse(),
            subprotocols: subprotocols?,
            messages: raw.messages(),
            forward_headers: forward_headers?,
            health: raw.health(),
            strip_prefix,
            passes_cookies: raw.cookies() == "pass",
            message_max,
            reauthenticate: reauthenticate?,
        })
    }

    fn hosts(&mut self, list: &List) -> Option<Vec<HostPattern>> {
        let Some(list) = list else { return Some(Vec::new()) };
        let parsed: Vec<Option<HostPattern>> = list
            .get_ref()
            .iter()
            .map(|text| match HostPattern::parse(text.get_ref()) {
                Ok(pattern) => Some(pattern),
                Err(fix) => {
                    let what = format!("{:?} is not a host", text.get_ref());
                    self.report.error(text.span(), what, &fix);
                    None
                }
            })
            .collect();
        parsed.into_iter().collect()
    }

    /// The owner of any domain can make a name in it point here, so that a page's own host proves
    /// nothing unless the hosts are known.
    fn check_same_host(&mut self, raw: &RawRoute) {
        let no_hosts = raw.hosts.as_ref().is_none_or(|list| list.get_ref().is_empty());
        let Some(ListOrWord::List(list)) = raw.origins.as_ref().map(Spanned::get_ref) else {
            return;
        };
        let same_host = list.iter().find(|text| text.get_ref() == "same-host");
        if let Some(text) = same_host.filter(|_| no_hosts) {
            let what = "\"same-host\" without hosts: a page of any domain could connect whose name \
                        is made to point here (DNS rebinding)";
            self.report.error(text.span(), what, "add hosts = [\"app.example.com\"] to the route");
        }
    }

    fn path(&mut self, text: &Spanned<String>, earlier: &[&PathPattern]) -> Option<PathPattern> {
        let Some(pattern) = parse_path(text.get_ref()) else {
            let what = format!("{:?} is not a path", text.get_ref());
            let fix = "write /PATH, or /PREFIX/* for all below it: visible ASCII without ? # \
                       and spaces";
            self.report.error(text.span(), what, fix);
            return None;
        };
        let shadowed = |other: &&&PathPattern| match (**other, &pattern) {
            (PathPattern::Prefix(other), PathPattern::Prefix(ours))
            | (PathPattern::Prefix(other), PathPattern::Exact(ours)) => ours.starts_with(other),
            (PathPattern::Exact(_), PathPattern::Prefix(_)) => false,
            (PathPattern::Exact(other), PathPattern::Exact(ours)) => other == ours,
        };
        match earlier.iter().find(shadowed) {
            Some(other) if **other == pattern => {
                let what = format!("two routes have the path {:?}", text.get_ref());
                self.report.error(text.span(), what, "remove one");
            }
            Some(_) => {
                let what = format!("{:?} is never reached: an earlier route", text.get_ref());
                let what = format!("{what} takes everything below it or around it");
                self.report.warning(text.span(), what, "move it before that one");
            }
            None => {}
        }
        Some(pattern)
    }

    /// Indices of the blocks that the route names; empty without authentication, `None` an
    /// error.
    fn route_auths(&mut self, raw: &RawRoute, auths: &Names) -> Option<Vec<u16>> {
        let list = raw.auth.as_ref()?;
        let blocks = list.get_ref();
        if blocks.is_empty() || blocks.len() > ROUTE_AUTHS_MAX {
            let what = format!("auth names {} blocks", blocks.len());
            let fix = format!("name 1 to {ROUTE_AUTHS_MAX}, or write auth = \"none\"");
            self.report.error(list.span(), what, &fix);
            return None;
        }
        if written_out_none(raw).is_some() {
            return Some(Vec::new());
        }
        let mut found = Vec::new();
        for name in blocks {
            let text = name.get_ref();
            match auths.find(text) {
                _ if text == VisitorsWelcome::NAME => {}
                _ if text == "none" => {
                    let what = "\"none\" beside other blocks: anybody could connect";
                    self.report.error(name.span(), what, "write auth = \"none\" alone, or drop it");
                }
                Some(index) if found.contains(&index) => {
                    self.report.error(name.span(), format!("{text:?} is named twice"), "");
                }
                Some(index) => found.push(index),
                None if auths.is_complete() => {
                    let what = format!("there is no [[auth]] called {text:?}");
                    self.report.error(name.span(), what, &auths.suggestion(text));
                }
                None => {}
            }
        }
        let welcome = visitors(raw).is_some();
        let named = blocks.iter().filter(|name| name.get_ref() == VisitorsWelcome::NAME).count();
        if named != usize::from(welcome) || (welcome && blocks.len() == 1) {
            let what = "\"anonymous\" stands for what remains when no block has a credential";
            let fix = "write it last, once, behind other blocks; without any write auth = \"none\"";
            self.report.error(list.span(), what, fix);
            return None;
        }
        (found.len() + named == blocks.len()).then_some(found)
    }

    fn route_backend(&mut self, raw: &RawRoute, backends: &Names) -> Option<u16> {
        let name = raw.backend.as_ref()?;
        let found = backends.find(name.get_ref());
        if found.is_none() && backends.is_complete() {
            let what = format!("there is no [[backend]] called {:?}", name.get_ref());
            self.report.error(name.span(), what, &backends.suggestion(name.get_ref()));
        }
        found
    }

    /// Warns of blocks that no route names: a typing error often looks so.
    fn report_unused(&mut self, raw: &RawSettings) {
        let routes = || raw.route.iter().map(Spanned::get_ref);
        let auths = raw.auth.iter().map(|a| ("auth", &a.get_ref().name));
        let backends = raw.backend.iter().map(|b| ("backend", &b.get_ref().name));
        for (section, name) in auths.chain(backends) {
            let Some(name) = name else { continue };
            let used = routes().any(|route| match section {
                "auth" => route.auth.iter().flat_map(|list| list.get_ref()).any(is(name)),
                _ => route.backend.iter().any(is(name)),
            });
            if !used && !raw.route.is_empty() {
                let what = format!("no route uses the [[{section}]] {:?}", name.get_ref());
                self.report.warning(name.span(), what, "");
            }
        }
    }

    fn origins(&mut self, origins: &Spanned<ListOrWord>) -> Option<OriginPolicy> {
        let ListOrWord::List(list) = origins.get_ref() else {
            return OriginPolicy::parse_list(&["any".to_owned()]).ok();
        };
        let mut failed = false;
        for text in list {
            if text.get_ref() == "any" {
                // Checks elsewhere rely on this one spelling.
                let what = "\"any\" is not an origin, and cannot be in a list";
                self.report.error(text.span(), what, "write origins = \"any\"");
                failed = true;
                continue;
            }
            let one = [text.get_ref().clone()];
            if let Err((_, why)) = OriginPolicy::parse_list(&one) {
                let what = format!("{:?} is not an origin: {why}", text.get_ref());
                let fix = "write it as a browser sends it: https://app.example.com, or \
                           https://*.example.com";
                self.report.error(text.span(), what, fix);
                failed = true;
            }
        }
        if failed {
            return None;
        }
        let all: Vec<String> = list.iter().map(|text| text.get_ref().clone()).collect();
        OriginPolicy::parse_list(&all)
            .map_err(|(index, why)| {
                let at = list.get(index).map_or(origins.span(), Spanned::span);
                self.report.error(at, why, "");
            })
            .ok()
    }

    /// A browser sends cookies whichever page connects: they need a closed list of origins.
    fn check_cookies(&mut self, route: &Spanned<RawRoute>, blocks: &[&RawAuth]) {
        let is_cookie = |text: &&Spanned<String>| text.get_ref().starts_with("cookie:");
        if !carriers_of(blocks).any(|carrier| is_cookie(&carrier)) {
            return;
        }
        let raw = route.get_ref();
        if let Some(origins) = &raw.origins
            && let ListOrWord::Word = origins.get_ref()
        {
            let what = "origins = \"any\" with a cookie carrier: every page on the internet could \
                        connect as the visitor, since browsers add the cookie by themselves \
                        (cross-site WebSocket hijacking)";
            let fix = "list the origins, or take the cookie out of the carriers";
            self.report.error(origins.span(), what, fix);
        }
        let listed = raw.origins.iter().flat_map(|origins| match origins.get_ref() {
            ListOrWord::List(list) => list.as_slice(),
            ListOrWord::Word => &[],
        });
        for text in listed.filter(|text| OPAQUE.contains(&text.get_ref().as_str())) {
            let what = format!(
                "origin {:?} with a cookie carrier: sandboxed pages of every site have it, and \
                 browsers add the cookie by themselves (cross-site WebSocket hijacking)",
                text.get_ref()
            );
            let fix = "give such pages a route of their own, with another carrier";
            self.report.error(text.span(), what, fix);
        }
        if carriers_of(blocks).all(|carrier| is_cookie(&carrier)) && raw.origin_absent() == "allow"
        {
            let what = "origin_absent = \"allow\" where cookies alone authenticate: whoever \
                        obtains a cookie can use it outside a browser, without an Origin";
            let fix = "write origin_absent = \"refuse\", or give programs another carrier";
            self.report.warning(place(&raw.origin_absent, &route.span()), what, fix);
        }
    }

    /// Warns of fields to pass on that no client's request can keep: they are believed of the
    /// proxies of a listener alone.
    pub(super) fn check_forwarded_fields(&mut self, raw: &RawSettings) {
        if raw.listener.iter().any(|listener| listener.get_ref().forwarded.is_some()) {
            return;
        }
        let of_routes = raw.route.iter().map(|route| &route.get_ref().forward_headers);
        let of_auths = raw.auth.iter().map(|auth| &auth.get_ref().headers);
        let names = of_routes.chain(of_auths).flatten().flat_map(|list| list.get_ref());
        for name in names.filter(|name| is_claim(name.get_ref())) {
            let what = format!(
                "{:?} is never passed on: any client can write it, and no listener has `forwarded`",
                name.get_ref()
            );
            let fix = "name the proxies that set it in the listener's `forwarded`, or remove it; \
                       the client's address is passed on without it";
            self.report.warning(name.span(), what, fix);
        }
    }

    fn check_open(&mut self, route: &Spanned<RawRoute>, asked: Option<&[u16]>) {
        let any = |origins: &Spanned<ListOrWord>| matches!(origins.get_ref(), ListOrWord::Word);
        let raw = route.get_ref();
        let open = asked == Some(&[]) || visitors(raw).is_some();
        if open && raw.origins.as_ref().is_some_and(any) {
            let auth = match visitors(raw) {
                Some(_) => "auth = [..., \"anonymous\"]",
                None => "auth = \"none\"",
            };
            let what = format!("{auth} with origins = \"any\": anybody can reach the backend");
            let at: Range<usize> = place(&raw.auth, &route.span());
            self.report.warning(at, what, "keep it so only where everything is public");
        }
        let nobody = |origins: &Spanned<ListOrWord>| match origins.get_ref() {
            ListOrWord::List(list) => list.is_empty(),
            ListOrWord::Word => false,
        };
        if raw.origins.as_ref().is_some_and(nobody) && raw.origin_absent() == "refuse" {
            let what = "origins = [] and origin_absent = \"refuse\": nobody can use this route";
            let fix = "list origins, or write origin_absent = \"allow\" for programs";
            self.report.warning(place(&raw.origins, &route.span()), what, fix);
        }
    }

    /// A client without a credential in its request is a visitor there and then, so none may bring
    /// one later.
    fn check_visitors(&mut self, raw: &RawRoute, blocks: &[&RawAuth]) {
        let late = carriers_of(blocks).find(|text| text.get_ref().starts_with("first-message"));
        if let (Some(_), Some(late), Some(list)) = (visitors(raw), late, &raw.auth) {
            let what = format!(
                "\"anonymous\" with the carrier {:?}: a client without a credential in its request \
                 may still send one",
                late.get_ref()
            );
            self.report.error(list.span(), what, "give visitors a route of their own");
        }
    }

    fn subprotocols(&mut self, list: &List) -> Option<Vec<String>> {
        let Some(list) = list else { return Some(Vec::new()) };
        let mut names: Vec<String> = Vec::new();
        let mut failed = false;
        for text in list.get_ref() {
            let name = text.get_ref();
            let what = if !is_token(name) {
                format!("{name:?} is not a subprotocol: it must be an HTTP token")
            } else if name.starts_with("base64url.bearer.") {
                format!("{name:?} carries a token and can never be answered with")
            } else if names.contains(name) {
                format!("subprotocol {name:?} is listed twice")
            } else {
                names.push(name.clone());
                continue;
            };
            self.report.error(text.span(), what, "");
            failed = true;
        }
        (!failed).then_some(names)
    }

    fn forward_headers(&mut self, list: &List, blocks: &[&RawAuth]) -> Option<Vec<String>> {
        let Some(list) = list else { return Some(Vec::new()) };
        let carries_token = |name: &str| {
            let is = |text: &Spanned<String>| {
                text.get_ref().strip_prefix("header:").is_some_and(|h| h.eq_ignore_ascii_case(name))
            };
            carriers_of(blocks).any(is)
        };
        let mut names: Vec<String> = Vec::new();
        let mut failed = false;
        for text in list.get_ref() {
            let name = text.get_ref().to_ascii_lowercase();
            let what = if !is_token(&name) {
                format!("{:?} is not a header name", text.get_ref())
            } else if HEADERS_WITHHELD.contains(&name.as_str()) {
                format!("header {name:?} belongs to the gateway and is not forwarded")
            } else if carries_token(&name) {
                format!("header {name:?} carries the token and is not forwarded")
            } else if names.contains(&name) {
                format!("header {name:?} is listed twice")
            } else {
                if name == "cookie" {
                    let what = "the backend gets every cookie of the client, session included";
                    self.report.warning(text.span(), what, "forward what it needs alone");
                }
                names.push(name);
                continue;
            };
            self.report.error(text.span(), what, "");
            failed = true;
        }
        (!failed).then_some(names)
    }
}

/// The proof that the route says `auth = "none"`, and nothing else.
fn written_out_none(raw: &RawRoute) -> Option<NoAuthentication> {
    match raw.auth.as_ref()?.get_ref().as_slice() {
        [only] => NoAuthentication::written_out(only.get_ref()),
        _ => None,
    }
}

/// The proof that the route's list ends with "anonymous".
fn visitors(raw: &RawRoute) -> Option<VisitorsWelcome> {
    VisitorsWelcome::written_out(raw.auth.as_ref()?.get_ref().last()?.get_ref())
}

/// Whether each of our hosts is one of theirs; without any we serve every host.
fn covers(theirs: &[HostPattern], ours: &[HostPattern]) -> bool {
    !ours.is_empty() && ours.iter().all(|our| theirs.iter().any(|their| their.covers(our)))
}

fn is(name: &Spanned<String>) -> impl Fn(&Spanned<String>) -> bool + '_ {
    |other| other.get_ref() == name.get_ref()
}

fn carriers_of<'r>(blocks: &[&'r RawAuth]) -> impl Iterator<Item = &'r Spanned<String>> {
    blocks.iter().flat_map(|block| &block.carriers).flat_map(|list| list.get_ref())
}

/// RFC 9110 section 5.6.2.
pub(super) fn is_token(text: &str) -> bool {
    let is_tchar = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(is_tchar)
}

pub(super) fn parse_path(text: &str) -> Option<PathPattern> {
    let proper = |b: u8| b.is_ascii_graphic() && !b"?#*\"<>\\^`{|}".contains(&b);
    let (path, prefix) = match text.strip_suffix("/*") {
        Some(above) => (above, true),
        None => (text, false),
    };
    let rooted = path.starts_with('/') || (prefix && path.is_empty());
    if !rooted || text.len() > 1024 || !path.bytes().all(proper) {
        return None;
    }
    Some(match prefix {
        true => PathPattern::Prefix(format!("{path}/")),
        false => PathPattern::Exact(path.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let exact = |text: &str| Some(PathPattern::Exact(text.to_owned()));
        let prefix = |text: &str| Some(PathPattern::Prefix(text.to_owned()));
        let table: &[(&str, Option<PathPattern>)] = &[
            ("/", exact("/")),
            ("/ws", exact("/ws")),
            ("/ws/", exact("/ws/")),
            ("/ws/*", prefix("/ws/")),
            ("/*", prefix("/")),
            ("", None),
            ("*", None),
            ("ws", None),
            ("/ws*", None),
            ("/a/*/b", None),
            ("/ws?x=1", None),
            ("/ws#x", None),
            ("/w s", None),
            ("/ä", None),
        ];
        for (text, expected) in table {
            assert_eq!(&parse_path(text), expected, "{text:?}");
        }
    }
}
