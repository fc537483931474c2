//! `portcullis schema`.

use std::process::ExitCode;

use clap::Args;
use portcullis::settings::keys::schema;

/// Prints the configuration file's JSON Schema.
#[derive(Args)]
#[command(after_help = "\
Editors complete and check the file by it when its first line names it:
  #:schema ./portcullis.schema.json

Example:
  portcullis schema > portcullis.schema.json")]
pub struct Schema {}

/// Prints it.
pub fn run() -> ExitCode {
    print!("{}", schema::text());
    ExitCode::SUCCESS
}
