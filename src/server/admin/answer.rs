//! Answers of the admin listeners, with the fields that all of them have.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};

/// A whole response, made in memory.
pub type Answer = Response<Full<Bytes>>;

pub(super) fn respond(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    let fields = answer.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let resource = HeaderName::from_static("cross-origin-resource-policy");
    fields.insert(resource, HeaderValue::from_static("same-origin"));
    answer
}

pub(super) fn text(status: StatusCode, text: &str) -> Answer {
    respond(status, "text/plain; charset=utf-8", format!("{text}\n").into_bytes())
}

pub(super) fn json(status: StatusCode, value: &serde_json::Value) -> Answer {
    respond(status, "application/json", format!("{value}\n").into_bytes())
}
