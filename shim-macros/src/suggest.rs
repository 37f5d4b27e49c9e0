//! "Did you mean": the nearest of a few known words, or all of them where none is near.

/// The end of a message about an unknown word: the word that was probably meant, else the whole choice.
pub(crate) fn instead_of(word: &str, known: &[&str]) -> String {
    match closest(word, known) {
        Some(known) => format!("did you mean `{known}`?"),
        None => format!("expected one of `{}`", known.join("`, `")),
    }
}

/// The known word with the fewest edits from `word`, case aside; at most one and a quarter of its length.
pub(crate) fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let edits = |known: &&str| distance(&word.to_lowercase(), &known.to_lowercase());
    let nearest = known.iter().copied().min_by_key(edits)?;
    (edits(&nearest) <= 1 + word.chars().count() / 4).then_some(nearest)
}

/// Levenshtein's edit distance, row by row.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.chars().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.pop().unwrap_or_default()
}
