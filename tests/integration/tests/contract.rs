//! The contract as a document: its links lead to its own parts, its index knows every upstream issue that it names,
//! and each citation in the workspace ("contract 5.3", "contract 6.5, 4") names a part that exists.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use integration::workspace;
use shim_testing::promise;

type Done = Result<(), Box<dyn Error>>;

/// What may stand between two numbers of one citation.
const SEPARATORS: [&str; 4] = [", item ", ", ", " and ", " to "];

fn root() -> PathBuf {
    workspace::root().to_owned()
}

fn contract() -> Result<String, Box<dyn Error>> {
    Ok(fs::read_to_string(root().join("shim-runtime/docs/contract.md"))?)
}

/// The text between each `before` and the next `after`.
fn between<'a>(text: &'a str, before: &str, after: char) -> Vec<&'a str> {
    text.split(before).skip(1).filter_map(|rest| rest.split_once(after)).map(|(found, _)| found).collect()
}

/// The anchors of the contract, in their order.
fn anchors(contract: &str) -> Vec<&str> {
    between(contract, "<a id=\"", '"')
}

/// The anchor of a section, or of an item of section 0.
fn anchor_of(number: &str) -> String {
    format!("s{}", number.replace('.', "-"))
}

/// A citation as it was found, and the anchors of what it names.
#[derive(Debug, PartialEq, Eq)]
struct Citation {
    text: String,
    anchors: Vec<String>,
}

/// Splits off a number such as `5` or `5.3`.
fn take_number(text: &str) -> Option<(&str, &str)> {
    let digits = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let whole = digits(text);
    if whole == 0 {
        return None;
    }
    let fraction = text[whole..].strip_prefix('.').map_or(0, digits);
    let length = if fraction == 0 { whole } else { whole + 1 + fraction };
    Some(text.split_at(length))
}

/// Reads the numbers after the word "contract". `known` are the anchors that exist: a number without a dot after a
/// section with numbered items is one of these items, otherwise a section of its own.
fn read_citation(text: &str, known: &BTreeSet<&str>) -> Option<Citation> {
    let mut anchors = Vec::new();
    let mut with_items: Option<String> = None;
    let (mut number, mut rest) = take_number(text)?;
    loop {
        let anchor = match &with_items {
            Some(section) if !number.contains('.') => format!("{section}-{number}"),
            _ => {
                let anchor = anchor_of(number);
                let has_items = number.contains('.') && known.contains(format!("{anchor}-1").as_str());
                with_items = has_items.then(|| anchor.clone());
                anchor
            }
        };
        anchors.push(anchor);
        let next = SEPARATORS.iter().find_map(|separator| take_number(rest.strip_prefix(separator)?));
        let Some((next, after)) = next else { break };
        (number, rest) = (next, after);
    }
    // One RPC of the section on their meaning: "contract 6.3, Kill".
    if number == "6.3"
        && let Some(word) = rest.strip_prefix(", ").filter(|word| word.starts_with(char::is_uppercase))
    {
        let word: String = word.chars().take_while(char::is_ascii_alphabetic).collect();
        anchors.push(format!("s6-3-{}", word.to_lowercase()));
    }
    // A link has to lead to what it says.
    if let Some(target) = rest.strip_prefix("](crate::contract#")
        && let Some((target, _)) = target.split_once(')')
        && anchors.first().is_none_or(|anchor| anchor != target)
    {
        anchors.push(format!("{target}, which is another part"));
    }
    let text = text[..text.len() - rest.len()].to_owned();
    Some(Citation { text, anchors })
}

/// Every citation in the text of a file, whose comments may break a citation into two lines.
fn citations(file: &str, known: &BTreeSet<&str>) -> Vec<Citation> {
    let unmarked = |line: &str| {
        let line = line.trim();
        line.trim_start_matches(['/', '!', '#']).trim_start().to_owned()
    };
    let text = file.lines().map(unmarked).collect::<Vec<_>>().join(" ");
    text.split("ontract ").skip(1).filter_map(|after| read_citation(after, known)).collect()
}

/// The text files of the workspace, by their paths from its root.
fn text_files(folder: &Path, files: &mut BTreeMap<PathBuf, String>) -> Done {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        if kind.is_dir() {
            text_files(&path, files)?;
        } else if kind.is_file()
            && let Ok(text) = fs::read_to_string(&path)
        {
            files.insert(path, text);
        }
    }
    Ok(())
}

#[test]
fn each_citation_in_the_workspace_names_a_part_of_the_contract() -> Done {
    let contract = contract()?;
    let known: BTreeSet<_> = anchors(&contract).into_iter().collect();
    let mut files = BTreeMap::new();
    text_files(&root(), &mut files)?;
    let mut missing = Vec::new();
    let mut count = 0;
    for (path, text) in &files {
        let path = path.strip_prefix(root())?;
        for citation in citations(text, &known) {
            count += 1;
            let unknown = citation.anchors.iter().filter(|anchor| !known.contains(anchor.as_str()));
            missing.extend(
                unknown.map(|anchor| format!("{}: contract {} ({anchor})", path.display(), citation.text)),
            );
        }
        let is_anchor = |target: &&str| target.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        for target in between(text, "crate::contract#", ')').into_iter().filter(is_anchor) {
            if !known.contains(target) {
                missing.push(format!("{}: a link to {target}", path.display()));
            }
        }
    }
    assert!(missing.is_empty(), "no such part of the contract:\n{}", missing.join("\n"));
    assert!(count > 100, "only {count} citations were found");
    Ok(())
}

#[test]
fn each_promise_names_a_part_of_the_contract() -> Done {
    let contract = contract()?;
    let known: BTreeSet<_> = anchors(&contract).into_iter().collect();
    for promise in promise::ALL {
        let anchor = anchor_of(promise.section);
        assert!(known.contains(anchor.as_str()), "{promise} names contract {}", promise.section);
    }
    Ok(())
}

#[test]
fn each_link_in_the_contract_leads_to_one_of_its_parts() -> Done {
    let contract = contract()?;
    let known: BTreeSet<_> = anchors(&contract).into_iter().collect();
    assert_eq!(known.len(), anchors(&contract).len(), "an anchor exists twice");
    let mut targets = between(&contract, "](#", ')');
    targets.extend(contract.lines().filter_map(|line| line.split_once("]: #")).map(|(_, target)| target));
    let lost: Vec<_> = targets.iter().filter(|target| !known.contains(*target)).collect();
    assert!(lost.is_empty(), "links without a target: {lost:?}");
    assert!(targets.len() > 300, "only {} links were found", targets.len());
    Ok(())
}

#[test]
fn each_numbered_heading_of_the_contract_has_the_anchor_of_its_number() -> Done {
    let contract = contract()?;
    let mut count = 0;
    let mut last = "";
    for line in contract.lines().filter(|line| !line.is_empty()) {
        let heading = line.strip_prefix("### ").or_else(|| line.strip_prefix("## "));
        if let Some((number, _)) = heading.and_then(take_number) {
            count += 1;
            assert_eq!(last, format!("<a id=\"{}\"></a>", anchor_of(number)), "before `{line}`");
        }
        last = line;
    }
    assert!(count > 40, "only {count} headings were found");
    Ok(())
}

#[test]
fn the_index_of_the_contract_knows_every_upstream_issue_that_it_names() -> Done {
    let contract = contract()?;
    let (body, index) = contract.split_once("### By upstream issue").ok_or("there is no such index")?;
    let named =
        between(body, "[", ']').into_iter().filter(|label| label.contains(" #") || label.starts_with("CVE-"));
    let forgotten: BTreeSet<_> = named.filter(|label| !index.contains(&format!("\n| [{label}] |"))).collect();
    assert!(forgotten.is_empty(), "not in the index: {forgotten:?}");
    Ok(())
}

#[test]
fn a_citation_is_read_in_each_form_that_is_in_use() {
    let known: BTreeSet<_> = ["s0-2", "s4", "s6-3", "s6-3-kill", "s6-5", "s6-5-1", "s6-5-4", "s7"].into();
    let read = |text: &str| read_citation(text, &known).map(|citation| citation.anchors).unwrap_or_default();
    assert_eq!(read("5.3)."), ["s5-3"]);
    assert_eq!(read("4, bug #1"), ["s4"]);
    assert_eq!(read("2.1 to 2.4"), ["s2-1", "s2-4"]);
    assert_eq!(read("0.2, 6.3 and 7."), ["s0-2", "s6-3", "s7"]);
    assert_eq!(read("6.5, 4"), ["s6-5", "s6-5-4"]);
    assert_eq!(read("6.5, 10 and 11: two"), ["s6-5", "s6-5-10", "s6-5-11"]);
    assert_eq!(read("6.5, item 12"), ["s6-5", "s6-5-12"]);
    assert_eq!(read("6.5, 6.6, 7, 9.2"), ["s6-5", "s6-6", "s7", "s9-2"]);
    assert_eq!(read("4, 6 and 9"), ["s4", "s6", "s9"]);
    assert_eq!(read("6.3, Kill)"), ["s6-3", "s6-3-kill"]);
    assert_eq!(read("4](crate::contract#s4)"), ["s4"]);
    assert_eq!(read("4](crate::contract#s7)"), ["s4", "s7, which is another part"]);
    assert!(read("that is broken").is_empty());
}

#[test]
fn a_citation_is_found_in_a_comment_that_breaks_it() {
    let known = BTreeSet::new();
    let broken = concat!("/// Is done so (contract", "\n    /// 99.9).\n//! Contract", " 98: why\n");
    let found: Vec<_> = citations(broken, &known).into_iter().flat_map(|citation| citation.anchors).collect();
    assert_eq!(found, ["s99-9", "s98"]);
}
