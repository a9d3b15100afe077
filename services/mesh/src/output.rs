//! Tables for people, JSON with a schema for programs.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, ContentArrangement, Table};
use mesh_types::NodeState;
use serde::Serialize;
use serde_json::{Value, json};

/// What a shell reports for a program that SIGPIPE ended.
const NOBODY_READS: i32 = 141;

/// Prints a line as `println!` does; a reader that goes away (`mesh events | head`) is no fault.
macro_rules! say {
    () => { $crate::output::line(format_args!("")) };
    ($($text:tt)*) => { $crate::output::line(format_args!($($text)*)) };
}

/// What the macro `say` does.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    let Err(error) = writeln!(io::stdout(), "{text}") else {
        return;
    };
    if error.kind() == io::ErrorKind::BrokenPipe {
        std::process::exit(NOBODY_READS);
    }
    eprintln!("mesh: cannot write: {error}");
    std::process::exit(1);
}

/// Prints `{"schema": schema, name: value}` on one line.
pub(crate) fn print_json(schema: &str, name: &str, value: impl Serialize) -> anyhow::Result<()> {
    let mut object = serde_json::Map::new();
    object.insert("schema".to_owned(), json!(schema));
    object.insert(name.to_owned(), serde_json::to_value(value)?);
    say!("{}", Value::Object(object));
    Ok(())
}

/// Says that something was done: `text` to people, schema `mesh.done/1` to programs.
pub(crate) fn done(json: bool, verb: &str, subject: &str, text: &str) -> anyhow::Result<()> {
    if json {
        return print_json(
            "mesh.done/1",
            "done",
            json!({ "verb": verb, "subject": subject }),
        );
    }
    say!("{text}");
    Ok(())
}

/// Whether standard output wants colour: a terminal, and no `NO_COLOR` (no-color.org).
pub(crate) fn coloured() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Text in an ANSI colour, or plain where none is wanted.
pub(crate) fn paint(text: &str, colour: Colour, coloured: bool) -> String {
    if coloured {
        format!("\x1b[{}m{text}\x1b[0m", colour as u8)
    } else {
        text.to_owned()
    }
}

/// The colours in use (ECMA-48 SGR numbers).
#[derive(Debug, Clone, Copy)]
pub(crate) enum Colour {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
    Cyan = 36,
}

/// A node's state, coloured by how well it is.
pub(crate) fn state(state: NodeState, coloured: bool) -> String {
    let colour = match state {
        NodeState::Online => Colour::Green,
        NodeState::Stale => Colour::Yellow,
        NodeState::Offline => Colour::Red,
    };
    paint(state.as_str(), colour, coloured)
}

/// A table without lines: a head, and rows that align below it.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> String {
    let coloured = coloured();
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.map(|title| Cell::new(paint(title, Colour::Dim, coloured))));
    for row in rows {
        table.add_row(row.map(Cell::new));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    text.lines()
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .join("\n")
}
