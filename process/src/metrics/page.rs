//! In: a catalogue. Out: its table in the page of the metrics, which stands there between two comments with its name.

use std::{fs, io, path::Path};

use super::catalogue::{Definition, Label, Values};

/// The variable with which a test writes the table instead of comparing it.
pub const UPDATE_VARIABLE: &str = "UPDATE_METRICS_PAGE";

/// Why a page does not hold a catalogue's table.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// It cannot be read or written.
    #[error("failed to read or write the page")]
    Io(#[from] io::Error),
    /// It has no place for the table.
    #[error("the page has no lines {0:?} and {1:?}")]
    NoPlace(String, String),
    /// The table is another one.
    #[error(
        "the page does not have the table as the catalogue makes it: run the test with {UPDATE_VARIABLE}=1, which writes it:\n{0}"
    )]
    Differs(String),
}

/// Compares the page with a catalogue, or writes its table into it where the variable is set.
///
/// # Errors
///
/// The page differs, or has no place for the table.
pub fn check(page: &Path, section: &str, catalogue: &[Definition]) -> Result<(), PageError> {
    let text = fs::read_to_string(page)?;
    let updated = updated(&text, section, catalogue)?;
    if updated == text {
        return Ok(());
    }
    if std::env::var_os(UPDATE_VARIABLE).is_none() {
        return Err(PageError::Differs(table(catalogue)));
    }
    Ok(fs::write(page, updated)?)
}

/// The page with the table of a catalogue in its place.
fn updated(text: &str, section: &str, catalogue: &[Definition]) -> Result<String, PageError> {
    let (begin, end) = (format!("<!-- {section}: begin -->\n"), format!("<!-- {section}: end -->\n"));
    let place = text.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    let Some((before, after)) = place else { return Err(PageError::NoPlace(begin, end)) };
    Ok(format!("{before}{begin}{}{end}{after}", table(catalogue)))
}

/// The table in Markdown.
#[must_use]
pub fn table(catalogue: &[Definition]) -> String {
    let rows = catalogue.iter().map(|row| {
        let labels: Vec<_> = row.labels.iter().map(describe).collect();
        format!(
            "| `{}` | {} | {} | {} |\n",
            row.sample_name(),
            row.kind.as_str(),
            labels.join(", "),
            row.help
        )
    });
    format!("| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n{}", rows.collect::<String>())
}

fn describe(label: &Label) -> String {
    let values = match label.values {
        Values::Words(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
        Values::NameOf(what) => what.to_owned(),
    };
    format!("`{}` ({values})", label.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::catalogue::{name_of, words};

    crate::catalogue! {
        CALLS: Counter "a_calls" [words("outcome", &["ok", "failed"]), name_of("stream", "a stream")] "Calls by outcome";
    }

    #[test]
    fn a_page_holds_the_table_of_its_catalogue() {
        let table = "| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n\
                     | `a_calls_total` | counter | `outcome` (`ok`, `failed`), `stream` (a stream) | Calls by outcome |\n";
        let page = format!("# A\n<!-- a: begin -->\n{table}<!-- a: end -->\nB\n");
        assert_eq!(updated(&page, "a", CATALOGUE).unwrap(), page);
        assert_eq!(updated(&page.replace("counter", "gauge"), "a", CATALOGUE).unwrap(), page);
        assert!(matches!(updated(&page, "b", CATALOGUE), Err(PageError::NoPlace(..))));
    }
}
