"""Everything two methods would otherwise share: finding sites, attaching, composing, merging."""
