//! The page, embedded, and what it loads.

use std::sync::Arc;

use serde_json::json;

use super::options::{DevOptions, unix_seconds};
use super::settings::SUBPROTOCOL;
use super::tokens::Mint;

use crate::server::{Asset, AssetBody, Page};

const HTML: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPTS: [(&str, &str); 2] =
    [("/app.js", include_str!("page.js")), ("/charts.js", include_str!("charts.js"))];
const ICON: &str = include_str!("icon.svg");

/// What the admin listener serves beside its own endpoints.
pub(super) fn page(options: &DevOptions, mint: Arc<Mint>) -> Page {
    let fixed = |path: &str, content_type, text: &str| Asset {
        path: path.to_owned(),
        content_type,
        body: AssetBody::Fixed(text.as_bytes().to_vec()),
    };
    let mut assets = vec![
        fixed("/", "text/html; charset=utf-8", HTML),
        fixed("/style.css", "text/css; charset=utf-8", STYLE),
        fixed("/icon.svg", "image/svg+xml", ICON),
    ];
    for (path, script) in SCRIPTS {
        assets.push(fixed(path, "text/javascript; charset=utf-8", script));
    }
    let options = *options;
    let tokens = move || tokens_json(&options, &mint).into_bytes();
    assets.push(Asset {
        path: "/dev/tokens.json".to_owned(),
        content_type: "application/json",
        body: AssetBody::Made(Arc::new(tokens)),
    });
    let DevOptions { plain, tls, .. } = options;
    let connect_sources = vec![format!("ws://{plain}"), format!("wss://{tls}")];
    Page { assets, connect_sources }
}

fn tokens_json(options: &DevOptions, mint: &Mint) -> String {
    let DevOptions { plain, tls, .. } = options;
    json!({
        "plain": format!("ws://{plain}"),
        "tls": format!("wss://{tls}"),
        "certificate": format!("https://{tls}/echo"),
        "subprotocol": SUBPROTOCOL,
        "tokens": mint.all(unix_seconds()),
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::secret::Secret;
    use crate::protocol::cause::Cause;
    use crate::protocol::dialect::is_silent;
    use crate::protocol::jwt::{Algorithm, JwtKey};

    #[test]
    fn everything_the_page_loads_is_there_and_nothing_from_elsewhere() {
        let secret = Secret::new(vec![b'k'; 64]);
        let key = JwtKey { id: None, algorithm: Algorithm::HS256, secret };
        let page = page(&DevOptions::default(), Arc::new(Mint::new(key, vec![b'f'; 64])));
        for attribute in ["src=\"", "href=\""] {
            for rest in HTML.split(attribute).skip(1) {
                let target = rest.split('"').next().unwrap();
                let known = page.assets.iter().any(|asset| asset.path == target);
                let endpoint = ["/metrics", "/live.json", "#"].contains(&target);
                assert!(known || endpoint, "{target} is not served");
            }
        }
        // The Content-Security-Policy of the admin listener forbids what is inline.
        for forbidden in ["<style", "style=\"", "onclick", "<script>", "http://", "https://"] {
            assert!(!HTML.contains(forbidden), "the page has {forbidden}");
        }
    }

    #[test]
    fn the_page_explains_every_cause_that_a_client_can_see() {
        for cause in Cause::ALL.iter().filter(|cause| !is_silent(**cause)) {
            // Answered over HTTP, not with a close.
            if *cause != Cause::HealthCheck {
                assert!(SCRIPTS[0].1.contains(&format!("{}:", cause.label())), "{cause:?}");
            }
        }
    }
}
