//! Keeps docs/writing-a-service.md true: what it shows is cut out of files that are compiled and applied. Tests alone.

const GUIDE: &str = include_str!("../../../docs/writing-a-service.md");

fn blocks(language: &str) -> impl Iterator<Item = &'static str> {
    let begin = format!("\n```{language}\n");
    let ends: Vec<_> = GUIDE.match_indices(&begin).map(|(at, found)| &GUIDE[at + found.len()..]).collect();
    ends.into_iter().filter_map(|rest| rest.split_once("```").map(|(block, _)| block))
}

#[test]
fn the_code_of_the_guide_is_cut_out_of_its_example() {
    let example = include_str!("../examples/club.rs");
    assert!(blocks("rust").count() >= 6);
    for block in blocks("rust") {
        assert!(example.contains(block), "examples/club.rs does not have: {block}");
    }
}

#[test]
fn the_manifest_of_the_guide_is_cut_out_of_its_example() {
    let example = include_str!("../../../docs/examples/club.yaml");
    let mut manifests = blocks("yaml").filter(|block| block.starts_with("apiVersion")).peekable();
    assert!(manifests.peek().is_some());
    for block in manifests {
        assert!(example.contains(block), "docs/examples/club.yaml does not have: {block}");
    }
}
