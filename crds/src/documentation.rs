//! Keeps the pages of this repository true to each other and to the code: links, anchors, reasons. Tests alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::conditions::Reason;

/// A page: its lines outside of code blocks.
struct Page {
    path: PathBuf,
    lines: Vec<String>,
}

impl Page {
    fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(&path).unwrap();
        let mut in_code = false;
        let mut lines = Vec::new();
        for line in text.lines() {
            if line.trim_start().starts_with("```") {
                in_code = !in_code;
            } else if !in_code {
                lines.push(line.to_owned());
            }
        }
        Self { path, lines }
    }

    /// What follows `#` in links to its headings, as GitHub makes it.
    fn anchors(&self) -> Vec<String> {
        let mut times = BTreeMap::<String, usize>::new();
        let headings = self.lines.iter().filter(|line| line.starts_with('#'));
        let slugs = headings.map(|line| slug(line.trim_start_matches('#').trim()));
        slugs
            .map(|slug| {
                let before = times.entry(slug.clone()).or_default();
                *before += 1;
                if *before == 1 { slug } else { format!("{slug}-{}", *before - 1) }
            })
            .collect()
    }

    /// Text and target of each link.
    fn links(&self) -> Vec<(&str, &str)> {
        let ends = self.lines.iter().flat_map(|line| line.match_indices("](").map(move |(at, _)| (line, at)));
        ends.filter_map(|(line, at)| {
            let target = line[at + 2..].split(')').next()?;
            let text = line[..at].rsplit('[').next()?;
            Some((text, target))
        })
        .collect()
    }
}

fn slug(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|it| it.is_alphanumeric() || matches!(it, '-' | '_')).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn page(name: &str) -> Page {
    Page::read(root().join(name))
}

/// Every page of the repository.
fn pages() -> Vec<Page> {
    let mut found = Vec::new();
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "md") {
                found.push(Page::read(path));
            }
        }
    }
    found
}

#[test]
fn every_link_of_a_page_leads_to_a_file_and_a_heading() {
    let pages = pages();
    let anchors: BTreeMap<_, _> =
        pages.iter().map(|page| (page.path.canonicalize().unwrap(), page.anchors())).collect();
    let mut wrong = Vec::new();
    let mut followed = 0;
    for page in &pages {
        for (_, link) in page.links().into_iter().filter(|(_, link)| !link.contains("://")) {
            followed += 1;
            let (file, anchor) =
                link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
            let target =
                if file.is_empty() { page.path.clone() } else { page.path.parent().unwrap().join(file) };
            let there = target.canonicalize().is_ok_and(|target| {
                anchor.is_none_or(|anchor| {
                    anchors.get(&target).is_some_and(|all| all.iter().any(|it| it == anchor))
                })
            });
            if !there {
                wrong.push(format!("{} links to {link}", page.path.display()));
            }
        }
    }
    assert!(followed > 100, "only {followed} links were found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_page_of_troubleshooting_leads_to_every_reason_and_to_no_other() {
    let troubleshooting = page("docs/troubleshooting.md");
    let named: Vec<_> = troubleshooting
        .links()
        .into_iter()
        .filter(|(text, target)| text.starts_with('`') && *target == "conditions.md#reasons")
        .map(|(text, _)| text.trim_matches('`'))
        .collect();
    for reason in Reason::all().iter().map(|reason| reason.as_str()) {
        assert!(named.contains(&reason), "docs/troubleshooting.md does not say what to do about {reason}");
    }
    for name in named {
        let known = Reason::all().iter().any(|reason| reason.as_str() == name);
        assert!(known, "docs/troubleshooting.md names {name}, which is no reason");
    }
}

#[test]
fn events_that_the_page_of_troubleshooting_names_stand_in_the_table_of_events() {
    let conditions = page("docs/conditions.md").lines.join("\n");
    let (_, events) = conditions.split_once("\n## Events\n").unwrap();
    let troubleshooting = page("docs/troubleshooting.md");
    let named = troubleshooting.links().into_iter().filter(|(_, target)| *target == "conditions.md#events");
    let named: Vec<_> = named.filter(|(text, _)| text.starts_with('`')).collect();
    assert!(named.len() > 2, "{named:?}");
    for (event, _) in named {
        assert!(events.contains(&format!("| {event} |")), "docs/conditions.md has no event {event}");
    }
}

#[test]
fn the_manifests_of_the_first_steps_are_those_of_the_example() {
    let steps = fs::read_to_string(root().join("docs/getting-started.md")).unwrap();
    let example = fs::read_to_string(root().join("docs/examples/readings.yaml")).unwrap();
    assert!(steps.contains(&example), "docs/getting-started.md does not hold docs/examples/readings.yaml");
}
