//! Panics of workers become log lines; those of other threads go to the hook that was there before.

use std::cell::Cell;
use std::panic::PanicHookInfo;
use std::sync::Once;

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

static HOOK: Once = Once::new();

/// Longest panic message that is logged, in bytes.
const MESSAGE_MAX: usize = 1024;

/// From now on a panic of the calling thread is logged with its place and escaped message.
pub fn watch_this_thread() {
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if WATCHED.try_with(Cell::get).unwrap_or(false) {
                log(info);
            } else {
                previous(info);
            }
        }));
    });
    WATCHED.set(true);
}

fn log(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let payload = info.payload();
    let literal = payload.downcast_ref::<&str>().copied();
    let text = literal.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let text = escaped(text.unwrap_or("(not a text)"));
    tracing::error!(thread = thread.name().unwrap_or("?"), place, text, "panic");
}

/// The text with everything that could mislead a terminal or a log reader escaped, cut short.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for piece in text.chars().map(char::escape_debug) {
        if out.len() >= MESSAGE_MAX {
            out.push('…');
            break;
        }
        out.extend(piece);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_escaped_and_cut() {
        assert_eq!(escaped("a\nb\u{1b}[31m\"é"), "a\\nb\\u{1b}[31m\\\"é");
        let long = escaped(&"x".repeat(5000));
        assert_eq!(long.chars().count(), MESSAGE_MAX + 1);
        assert!(long.ends_with('…'));
    }
}
