//! The layout of pages taken apart, as `docs/format.md` draws it: read and written without a line of the transform, so that
//! tests hold the one against the other, and damage what is written where it hurts.

/// The streams that every frame has, in the order in which they are written: name, bytes of a row, and how many of them.
const STREAMS: [(&str, usize, usize); 38] = [
    ("page", 1, 1),
    ("header", 20, 1),
    ("special space of 16", 16, 1),
    ("special space, other", 1, 1),
    ("line pointer", 1, 1),
    ("its offset", 2, 1),
    ("its length", 2, 1),
    ("regular length", 2, 1),
    ("heap tuple", 1, 1),
    ("xmin", 4, 1),
    ("xmin, near", 1, 1),
    ("xmax", 4, 1),
    ("xmax, near", 1, 1),
    ("cid", 4, 1),
    ("ctid", 6, 1),
    ("infomasks", 4, 1),
    ("prefix", 1, 1),
    ("schema of the row", 1, 1),
    ("index tuple", 1, 1),
    ("place", 6, 1),
    ("place, near", 3, 1),
    ("posting list", 4, 1),
    ("posting, near", 1, 1),
    ("posting, far", 2, 1),
    ("posting, block", 4, 1),
    ("posting, offset", 2, 1),
    ("behind the list", 1, 1),
    ("words of rows", 8, 16),
    ("words of keys", 8, 8),
    ("key, first byte", 1, 1),
    ("key, shared", 1, 1),
    ("rest of keys", 1, 1),
    ("rest of rows", 1, 1),
    ("items", 1, 1),
    ("padding", 1, 1),
    ("cells", 1, 1),
    ("hole", 1, 1),
    ("raw pages", 1, 1),
];

/// Length of a column's values by the number of its shape; 0: varying.
const LENGTHS: [usize; 9] = [0, 0, 1, 2, 4, 8, 16, 16, 64];

/// Classes of rows that have a plan of words each: heap and index, without and with values of variable length.
const CLASSES: usize = 4;

/// A frame's streams, each as rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApartFrame {
    /// The modes of the words of each class.
    pub plans: [Vec<u8>; CLASSES],
    /// Shape and mode of each schema's columns.
    pub schemas: Vec<Vec<[u8; 2]>>,
    pub streams: Vec<Stream>,
}

/// One stream of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    pub name: &'static str,
    /// Bytes of a row.
    pub width: usize,
    pub rows: Vec<u8>,
}

impl ApartFrame {
    /// The frame that these bytes are, if they have the layout.
    pub fn read(mut bytes: &[u8]) -> Option<Self> {
        let mut plans: [Vec<u8>; CLASSES] = Default::default();
        for plan in &mut plans {
            let count = usize::from(*bytes.split_off_first()?);
            *plan = bytes.split_off(..count)?.to_vec();
        }
        let mut schemas = Vec::new();
        for _ in 0..*bytes.split_off_first()? {
            let count = usize::from(*bytes.split_off_first()?);
            let (columns, _) = bytes.split_off(..count * 2)?.as_chunks();
            schemas.push(columns.to_vec());
        }
        let mut streams = streams(&schemas);
        let mut lengths = Vec::new();
        for stream in &streams {
            let length = length(&mut bytes)?;
            if length % stream.width != 0 {
                return None;
            }
            lengths.push(length);
        }
        for (stream, length) in streams.iter_mut().zip(lengths) {
            let planes = bytes.split_off(..length)?;
            let count = length / stream.width;
            stream.rows = (0..length)
                .map(|at| planes[at % stream.width * count + at / stream.width])
                .collect();
        }
        bytes.is_empty().then_some(Self {
            plans,
            schemas,
            streams,
        })
    }

    /// The opposite of [`ApartFrame::read`].
    pub fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for plan in &self.plans {
            bytes.push(plan.len() as u8);
            bytes.extend_from_slice(plan);
        }
        bytes.push(self.schemas.len() as u8);
        for schema in &self.schemas {
            bytes.push(schema.len() as u8);
            bytes.extend_from_slice(schema.as_flattened());
        }
        for stream in &self.streams {
            let mut length = stream.rows.len();
            while length >= 128 {
                bytes.push(length as u8 | 128);
                length >>= 7;
            }
            bytes.push(length as u8);
        }
        for stream in &self.streams {
            let plane = |byte| stream.rows.iter().skip(byte).step_by(stream.width);
            bytes.extend((0..stream.width).flat_map(plane));
        }
        bytes
    }

    /// Has the streams that its schemas ask for, the new ones with a few zeros in them.
    pub fn fit(&mut self) {
        let mut fitting = streams(&self.schemas);
        let mut before = std::mem::take(&mut self.streams).into_iter();
        for stream in &mut fitting {
            stream.rows = before
                .next()
                .map_or_else(|| vec![0; 64], |before| before.rows);
            stream
                .rows
                .truncate(stream.rows.len() / stream.width * stream.width);
        }
        self.streams = fitting;
    }

    /// The rows of the first stream of this name.
    pub fn rows(&self, name: &str) -> &[u8] {
        let mut streams = self.streams.iter();
        &streams.find(|stream| stream.name == name).expect(name).rows
    }

    /// Puts other rows into it.
    pub fn set(&mut self, name: &str, rows: &[u8]) {
        let mut streams = self.streams.iter_mut();
        streams.find(|stream| stream.name == name).expect(name).rows = rows.to_vec();
    }
}

/// The streams of a frame with these schemas, still empty.
fn streams(schemas: &[Vec<[u8; 2]>]) -> Vec<Stream> {
    let mut widths = Vec::new();
    for (name, width, count) in STREAMS {
        widths.extend(std::iter::repeat_n((name, width), count));
    }
    for [shape, mode] in schemas.iter().flatten() {
        let length = LENGTHS.get(usize::from(*shape)).copied().unwrap_or(1);
        widths.extend_from_slice(match (length, mode) {
            (0, _) => &[("headers of values", 1), ("varying values", 1)],
            (8, 3..) => &[("numbers", 8), ("exceptions", 8)],
            (8, _) => &[("numbers", 8)],
            (4, _) => &[("numbers", 4)],
            (2, _) => &[("numbers", 2)],
            _ => &[("values", 1)],
        });
    }
    let stream = |(name, width)| Stream {
        name,
        width,
        rows: Vec::new(),
    };
    widths.into_iter().map(stream).collect()
}

/// Seven bits a byte, the least first, the last byte below 128; at most four bytes.
fn length(bytes: &mut &[u8]) -> Option<usize> {
    let mut length = 0;
    for shift in [0, 7, 14, 21] {
        let byte = *bytes.split_off_first()?;
        length |= usize::from(byte & 127) << shift;
        if byte < 128 {
            return Some(length);
        }
    }
    None
}
