//! Where in signed data the subject stands.

use super::Term;

/// One step into a term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The member of a map, or of a keyword list, that this names.
    Name(String),
    /// The element of a tuple or list, counted from 0.
    Index(usize),
}

/// Steps from the whole data to a part of it. Text is one name: dots belong to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TermPath(Vec<Step>);

impl From<&str> for TermPath {
    fn from(name: &str) -> Self {
        TermPath(vec![Step::Name(name.to_owned())])
    }
}

impl From<String> for TermPath {
    fn from(name: String) -> Self {
        TermPath(vec![Step::Name(name)])
    }
}

impl From<Vec<Step>> for TermPath {
    fn from(steps: Vec<Step>) -> Self {
        TermPath(steps)
    }
}

impl TermPath {
    /// The steps, from the outside in.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// The part of `term` that the path leads to. A name that stands there twice leads nowhere:
    /// which of the two is meant cannot be told.
    pub fn find<'t>(&self, term: Term<'t>) -> Option<Term<'t>> {
        self.0.iter().try_fold(term, |term, step| match (step, term) {
            (Step::Name(name), Term::Map(pairs)) => pairs.value(name),
            (Step::Name(name), Term::List(terms)) => {
                let mut values = terms.filter_map(|term| keyword(term, name));
                let first = values.next()?;
                values.next().is_none().then_some(first)
            }
            (Step::Index(index), Term::Tuple(mut terms) | Term::List(mut terms)) => {
                terms.nth(*index)
            }
            (Step::Index(index), Term::Bytes(bytes)) => bytes.get(*index).map(|b| Term::byte(*b)),
            _ => None,
        })
    }
}

/// The value of `{name, value}`.
fn keyword<'t>(term: Term<'t>, name: &str) -> Option<Term<'t>> {
    let Term::Tuple(mut pair) = term else { return None };
    let (key, value) = (pair.next()?, pair.next()?);
    (pair.is_empty() && key.names(name)).then_some(value)
}
