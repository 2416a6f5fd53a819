//! How an event becomes one line, and no more than one, whatever stands in it.
//!
//! Own code rather than the library's formats: those print what they are given in full, with its line ends, and know no
//! priorities of the journal.

use std::fmt::{self, Write};

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::overlay::Shown;

/// The longest message, and the longest value of a field, in characters. What comes from outside is cut to much less before
/// it gets here.
const LONGEST: usize = 1_500;

/// Who reads the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// People.
    Text,
    /// journald, which has a clock of its own and takes the level from a prefix
    /// (<https://www.freedesktop.org/software/systemd/man/sd-daemon.html>).
    Journal,
    /// Programs: an object a line.
    Json,
}

/// Writes events in a form.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line(pub(super) Form);

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut content = Content::default();
        event.record(&mut content);
        let level = *event.metadata().level();
        match self.0 {
            Form::Json => json(&mut out, level, &content),
            Form::Journal => {
                write!(out, "<{}>", priority(level))?;
                text(&mut out, &content)
            }
            Form::Text => {
                let [dim, color, plain] = if out.has_ansi_escapes() { colors(level) } else { [""; 3] };
                out.write_str(dim)?;
                SystemTime.format_time(&mut out)?;
                write!(out, "{plain} {color}{level:>5}{plain} ")?;
                text(&mut out, &content)
            }
        }?;
        out.write_char('\n')
    }
}

/// The priorities of syslog, `sys/syslog.h`.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// For the time, for the level, and to end either.
fn colors(level: Level) -> [&'static str; 3] {
    let color = match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[34m",
    };
    ["\x1b[2m", color, "\x1b[0m"]
}

fn text(out: &mut Writer<'_>, content: &Content) -> fmt::Result {
    out.write_str(&content.message)?;
    for (name, value) in &content.fields {
        match value {
            Value::String(value) => write!(out, " {name}={}", Quoted(value))?,
            value => write!(out, " {name}={value}")?,
        }
    }
    Ok(())
}

fn json(out: &mut Writer<'_>, level: Level, content: &Content) -> fmt::Result {
    out.write_str("{\"timestamp\":\"")?;
    SystemTime.format_time(out)?;
    write!(out, "\",\"level\":\"{level}\",\"message\":{}", Value::from(content.message.as_str()))?;
    for (name, value) in &content.fields {
        write!(out, ",\"{name}\":{value}")?;
    }
    out.write_char('}')
}

/// A value that ends where it seems to end: in quotes if it has a space.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_empty() && !self.0.contains(' ') && !self.0.starts_with('"') {
            return f.write_str(self.0);
        }
        f.write_char('"')?;
        let mut rest = self.0.chars().peekable();
        while let Some(c) = rest.next() {
            // A backslash elsewhere is itself, as in a pattern.
            if c == '"' || c == '\\' && rest.peek().is_none_or(|next| *next == '"') {
                f.write_char('\\')?;
            }
            f.write_char(c)?;
        }
        f.write_char('"')
    }
}

/// What an event says, fit to be shown.
#[derive(Debug, Default)]
struct Content {
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl Content {
    fn take(&mut self, field: &Field, text: &str) {
        let text = Shown::up_to(LONGEST, text).to_string();
        match field.name() {
            "message" => self.message = text,
            // Where in its source a library logs from.
            name if name.starts_with("log.") => {}
            name => self.fields.push((name, text.into())),
        }
    }

    fn number(&mut self, field: &Field, value: impl Into<Value>) {
        if !field.name().starts_with("log.") {
            self.fields.push((field.name(), value.into()));
        }
    }
}

impl Visit for Content {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.number(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.number(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.number(field, value);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use tracing::{debug, error, info, warn};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is printed of what `log` logs.
    fn printed(form: Form, log: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .event_format(Line(form))
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    const FORGED: &str = "x\n2026-01-01T00:00:00Z ERROR forged \u{1b}[2J\u{202e}";

    #[test]
    fn text_has_time_level_message_and_fields() {
        let line = printed(Form::Text, || info!(peers = 3, ready = true, key = "a", why = "one two", "as it is"));
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.len() == 27, "{line}");
        assert_eq!(rest, " INFO as it is peers=3 ready=true key=a why=\"one two\"\n");
    }

    #[test]
    fn the_journal_has_priorities_and_a_clock_of_its_own() {
        for (line, expected) in [
            (printed(Form::Journal, || error!("x")), "<3>x\n"),
            (printed(Form::Journal, || warn!(a = 1, "x")), "<4>x a=1\n"),
            (printed(Form::Journal, || info!("x")), "<6>x\n"),
            (printed(Form::Journal, || debug!("x")), "<7>x\n"),
        ] {
            assert_eq!(line, expected);
        }
    }

    #[test]
    fn json_is_an_object_with_the_values_in_their_kinds() {
        let line =
            printed(Form::Json, || warn!(peers = 3, left = -1, ready = true, key = "a \"b\"", error = %FORGED, "m"));
        let value: Value = serde_json::from_str(&line).unwrap();
        assert!(value["timestamp"].as_str().unwrap().ends_with('Z'));
        assert_eq!((&value["level"], &value["message"]), (&"WARN".into(), &"m".into()));
        assert_eq!((&value["peers"], &value["left"], &value["ready"]), (&3.into(), &(-1).into(), &true.into()));
        assert_eq!(value["key"], "a \"b\"");
        assert_eq!(value["error"], "x\\n2026-01-01T00:00:00Z ERROR forged \\u{1b}[2J\\u{202e}");
    }

    #[test]
    fn nothing_forges_a_line_or_a_field_and_nothing_is_endless() {
        let line = printed(Form::Text, || info!(a = FORGED, b = "1 c=2", d = "\" e=3", "{FORGED}"));
        assert!(line.contains(r#" b="1 c=2" d="\" e=3""#), "{line}");
        assert_eq!((line.lines().count(), line.contains(['\u{1b}', '\u{202e}'])), (1, false), "{line}");
        let line = printed(Form::Text, || info!(a = %"y".repeat(1_400_000), "m"));
        assert!(line.len() < 2_000 && line.ends_with("yyy... (1,400,000 bytes)\"\n"), "{line}");
    }

    #[test]
    fn a_quoted_value_ends_at_its_quote() {
        for (value, expected) in [
            ("", "\"\""),
            ("a", "a"),
            ("a b", "\"a b\""),
            (r"^10\.98 x", r#""^10\.98 x""#),
            (r#"a "b" c"#, r#""a \"b\" c""#),
            (r"a b\", r#""a b\\""#),
            (r#"a b\" c=1"#, r#""a b\\\" c=1""#),
        ] {
            assert_eq!(Quoted(value).to_string(), expected);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_one_line_in_each_form(message: String, value: String) {
            for form in [Form::Text, Form::Journal, Form::Json] {
                let line = printed(form, || info!(value, other = ?value, "{message}"));
                prop_assert_eq!(line.matches(|c: char| c.is_control()).collect::<String>(), "\n");
                prop_assert!(line.ends_with('\n'));
                if form == Form::Json {
                    prop_assert!(serde_json::from_str::<Value>(&line).unwrap()["value"].is_string());
                }
            }
        }
    }
}
