//! Reads settings one by one from a file and the environment over it, and notes every mistake.

use std::any::type_name;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;

use config::{Environment, File, FileFormat, Source, Value, ValueKind};

use super::problems::{Noted, Problem, Problems};

/// Maximum edits between an unknown name and a known one for which "did you mean" suggests the known one.
const MAX_SUGGESTION_EDITS: usize = 2;

/// Reads one program's settings. Each call names a setting, and so makes it known: anything else in the file is a mistake.
#[derive(Debug)]
pub struct Reader {
    prefix: String,
    file: BTreeMap<String, ValueKind>,
    /// By the name of the variable, without the prefix, in lower case (as the `config` crate collects them).
    environment: BTreeMap<String, String>,
    known: BTreeSet<String>,
    problems: Vec<Problem>,
}

impl Reader {
    /// Opens the file, if there is one, and collects the environment variables that begin with the prefix and `_`.
    ///
    /// # Errors
    ///
    /// The file cannot be read or is not YAML, or a variable is not Unicode.
    pub fn open(file: Option<&Path>, prefix: &str) -> Result<Self, Problems> {
        Self::from_sources(file, prefix, &Environment::with_prefix(prefix).ignore_empty(true))
    }

    fn from_sources(file: Option<&Path>, prefix: &str, environment: &Environment) -> Result<Self, Problems> {
        let mut settings = BTreeMap::new();
        let mut problems = Vec::new();
        if let Some(path) = file {
            match load(path) {
                Ok(table) => flatten("", table, &mut settings),
                Err(found) => problems.push(Problem {
                    path: path.display().to_string(),
                    variable: Some(format!("{prefix}_{}", super::CONFIG_FILE)),
                    found,
                    expected: "expected a YAML file of settings".to_owned(),
                }),
            }
        }
        let environment = environment.collect().unwrap_or_else(|error| {
            problems.push(Problem {
                path: format!("{prefix}_*"),
                variable: None,
                found: error.to_string(),
                expected: "expected Unicode".to_owned(),
            });
            config::Map::new()
        });
        Problems::check(problems)?;
        let environment = environment.into_iter().map(|(name, value)| (name, value.to_string())).collect();
        let known = BTreeSet::new();
        Ok(Self { prefix: prefix.to_owned(), file: settings, environment, known, problems: Vec::new() })
    }

    /// A setting that must be there. Read all settings before the `?`, or the later ones are not checked.
    ///
    /// # Errors
    ///
    /// It is absent or does not parse; [`finish`](Self::finish) reports that too.
    pub fn required<T>(&mut self, path: &str) -> Result<T, Noted>
    where
        T: FromStr,
        T::Err: Display,
    {
        let expected = format!("expected {}", short_name::<T>());
        self.read(path)?.ok_or_else(|| self.note(path, "missing", &expected))
    }

    /// A setting with a default. A mistake gives the default too, and [`finish`](Self::finish) reports it.
    pub fn value<T>(&mut self, path: &str, default: T) -> T
    where
        T: FromStr,
        T::Err: Display,
    {
        self.optional(path).unwrap_or(default)
    }

    /// A setting that may be absent. A mistake gives `None` too, and [`finish`](Self::finish) reports it.
    pub fn optional<T>(&mut self, path: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: Display,
    {
        self.read(path).ok().flatten()
    }

    /// Notes a mistake that only the program can see, such as a number out of range or two settings that exclude each other.
    /// `expected` says what must be there.
    pub fn refuse(&mut self, path: &str, found: impl Display, expected: &str) {
        self.note(path, &format!("{found}"), expected);
    }

    /// Ends the reading.
    ///
    /// # Errors
    ///
    /// Every mistake: absent and malformed settings, unknown keys in the file, and variables whose names are
    /// nearly those of known ones. (Other unknown variables are ignored: Kubernetes sets some for every Service.)
    pub fn finish(mut self) -> Result<(), Problems> {
        let known: Vec<_> = self.known.iter().map(|path| (path.clone(), self.variable(path))).collect();
        for path in self.file.keys().filter(|path| !self.known.contains(*path)) {
            let near = nearest(path, known.iter().map(|(path, _)| path.as_str()));
            self.problems.push(Problem {
                path: path.clone(),
                variable: None,
                found: "not a setting of this program".to_owned(),
                expected: near.map_or_else(|| settings(&known), |near| format!("did you mean {near}?")),
            });
        }
        for name in self.environment.keys() {
            let variable = format!("{}_{}", self.prefix, name.to_uppercase());
            if variable.ends_with(super::CONFIG_FILE) || known.iter().any(|(_, known)| *known == variable) {
                continue;
            }
            if let Some(near) = nearest(&variable, known.iter().map(|(_, variable)| variable.as_str())) {
                let expected = format!("did you mean {near}?");
                let found = "not a variable of this program".to_owned();
                self.problems.push(Problem { path: variable, variable: None, found, expected });
            }
        }
        Problems::check(self.problems)
    }

    fn read<T>(&mut self, path: &str) -> Result<Option<T>, Noted>
    where
        T: FromStr,
        T::Err: Display,
    {
        self.known.insert(path.to_owned());
        let found = match self.environment.get(&variable_tail(path).to_lowercase()) {
            Some(text) => Some((text.clone(), "in the environment")),
            None => match self.file.get(path) {
                None | Some(ValueKind::Nil) => None,
                Some(ValueKind::Array(_) | ValueKind::Table(_)) => {
                    let expected = format!("expected {}", short_name::<T>());
                    return Err(self.note(path, "found a list in the file", &expected));
                }
                Some(scalar) => Some((scalar.to_string(), "in the file")),
            },
        };
        let Some((text, origin)) = found else { return Ok(None) };
        text.trim().parse().map(Some).map_err(|error| {
            let expected = format!("expected {}: {error}", short_name::<T>());
            self.note(path, &format!("found {text:?} {origin}"), &expected)
        })
    }

    fn note(&mut self, path: &str, found: &str, expected: &str) -> Noted {
        let (found, expected) = (found.to_owned(), expected.to_owned());
        let problem = Problem { path: path.to_owned(), variable: Some(self.variable(path)), found, expected };
        self.problems.push(problem.clone());
        Noted(problem)
    }

    fn variable(&self, path: &str) -> String {
        format!("{}_{}", self.prefix, variable_tail(path))
    }
}

/// The variable's name after the prefix: `http.maxBodyBytes` is `HTTP_MAX_BODY_BYTES`.
fn variable_tail(path: &str) -> String {
    let mut name = String::with_capacity(path.len() + 4);
    for character in path.chars() {
        match character {
            '.' => name.push('_'),
            upper if upper.is_ascii_uppercase() => name.extend(['_', upper]),
            other => name.push(other.to_ascii_uppercase()),
        }
    }
    name
}

/// Reads the file of exactly this name: by default, the `config` crate tries other extensions too.
fn load(path: &Path) -> Result<config::Map<String, Value>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    if text.trim().is_empty() {
        return Ok(config::Map::new());
    }
    File::from_str(&text, FileFormat::Yaml).collect().map_err(|error| error.to_string())
}

/// The leaves of a table by their paths. An empty table has none, so a heading without settings is no mistake.
fn flatten(above: &str, table: config::Map<String, Value>, leaves: &mut BTreeMap<String, ValueKind>) {
    for (key, value) in table {
        let path = if above.is_empty() { key } else { format!("{above}.{key}") };
        match value.kind {
            ValueKind::Table(table) => flatten(&path, table, leaves),
            leaf => {
                leaves.insert(path, leaf);
            }
        }
    }
}

/// A type's name without its modules.
fn short_name<T>() -> &'static str {
    let name = type_name::<T>();
    let end = name.find('<').unwrap_or(name.len());
    name[..end].rfind("::").map_or(name, |start| &name[start + 2..])
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|known| (strsim::damerau_levenshtein(&name.to_lowercase(), &known.to_lowercase()), known))
        .filter(|(distance, _)| *distance <= MAX_SUGGESTION_EDITS)
        .min()
        .map(|(_, known)| known)
}

fn settings(known: &[(String, String)]) -> String {
    let names: Vec<_> = known.iter().map(|(path, _)| path.as_str()).collect();
    format!("the settings are {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::SocketAddr;

    use super::*;

    /// A reader over this file and these variables, whatever the test's own environment has.
    fn reader(yaml: &str, variables: &[(&str, &str)]) -> Reader {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(yaml.as_bytes()).unwrap();
        Reader::from_sources(Some(file.path()), "SHOP", &environment(variables)).unwrap()
    }

    fn environment(variables: &[(&str, &str)]) -> Environment {
        let variables =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Environment::with_prefix("SHOP").ignore_empty(true).source(Some(variables))
    }

    fn lines(reader: Reader) -> Vec<String> {
        reader.finish().unwrap_err().to_string().lines().map(str::to_owned).collect()
    }

    #[test]
    fn settings_come_from_the_file_and_the_environment_goes_over_it() {
        let yaml = "http:\n  address: 127.0.0.1:1\n  maxBodyBytes: 10\nretries: 3\n";
        let variables = [("SHOP_HTTP_MAX_BODY_BYTES", "20"), ("SHOP_RETRIES", ""), ("OTHER_RETRIES", "9")];
        let mut reader = reader(yaml, &variables);
        assert_eq!(reader.required("http.address"), Ok(SocketAddr::from(([127, 0, 0, 1], 1))));
        assert_eq!(reader.value("http.maxBodyBytes", 0_u64), 20);
        assert_eq!(reader.optional("retries"), Some(3_u8));
        assert_eq!(reader.value("greeting", "hello".to_owned()), "hello");
        assert_eq!(reader.optional::<bool>("absent"), None);
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn every_mistake_is_reported_at_once_with_its_path_its_variable_and_what_must_be_there() {
        let yaml = "http: {adress: 127.0.0.1:1}\nretries: many\nnames: [a, b]\n";
        let mut reader = reader(yaml, &[("SHOP_PORTS_FIRST", "70000"), ("SHOP_HTTP_ADRESS", "x")]);
        assert!(reader.required::<SocketAddr>("http.address").is_err());
        assert_eq!(reader.value("retries", 5_u32), 5);
        assert_eq!(reader.optional::<u16>("ports.first"), None);
        assert_eq!(reader.optional::<String>("names"), None);
        reader.refuse("rate", "found 2", "expected a number from 0 to 1");
        assert_eq!(
            lines(reader),
            [
                "http.address (SHOP_HTTP_ADDRESS): missing; expected SocketAddr",
                "retries (SHOP_RETRIES): found \"many\" in the file; expected u32: invalid digit found in string",
                "ports.first (SHOP_PORTS_FIRST): found \"70000\" in the environment; expected u16: number too large to fit in target type",
                "names (SHOP_NAMES): found a list in the file; expected String",
                "rate (SHOP_RATE): found 2; expected a number from 0 to 1",
                "http.adress: not a setting of this program; did you mean http.address?",
                "SHOP_HTTP_ADRESS: not a variable of this program; did you mean SHOP_HTTP_ADDRESS?",
            ]
        );
    }

    #[test]
    fn an_unknown_key_that_is_near_no_setting_is_answered_with_all_settings() {
        let mut reader = reader("colour: red\n", &[("SHOP_SERVICE_HOST", "10.0.0.1")]);
        assert_eq!(reader.value("retries", 1_u8), 1);
        assert_eq!(lines(reader), ["colour: not a setting of this program; the settings are retries"]);
    }

    #[test]
    fn an_empty_file_and_a_heading_without_settings_are_no_mistakes() {
        for yaml in ["", "# nothing\n", "http:\n"] {
            let mut reader = reader(yaml, &[]);
            assert_eq!(reader.optional::<String>("http"), None, "{yaml:?}");
            assert_eq!(reader.finish(), Ok(()), "{yaml:?}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_or_is_not_yaml_is_a_mistake_of_its_own() {
        let absent = Path::new("/absent/shop.yaml");
        let problems = Reader::from_sources(Some(absent), "SHOP", &environment(&[])).unwrap_err().to_string();
        assert!(problems.starts_with("/absent/shop.yaml (SHOP_CONFIG_FILE): No such file"), "{problems}");

        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"a: [1\nb: }").unwrap();
        let problems = Reader::from_sources(Some(file.path()), "SHOP", &environment(&[])).unwrap_err();
        assert_eq!(problems.as_slice().len(), 1, "{problems}");
    }

    #[test]
    fn mistakes_of_two_parts_are_reported_together() {
        let one = Problem {
            path: "a".into(),
            variable: None,
            found: "missing".into(),
            expected: "expected b".into(),
        };
        let both = Problems::zip::<u8, u8>(Err(one.clone().into()), Err(one.clone().into())).unwrap_err();
        assert_eq!(both.to_string(), "a: missing; expected b\na: missing; expected b");
        assert_eq!(Problems::zip::<u8, u8>(Ok(1), Err(one.clone().into())), Err(one.into()));
        assert_eq!(Problems::zip(Ok(1), Ok("b")), Ok((1, "b")));
    }
}
