import { parquetSchema, type FileMetaData, type SchemaElement, type SchemaTree } from 'hyparquet';
import { DataError, listNames } from './dataErrors.js';

/** A column of texts: one value per row, in a plain column or inside of structures, never in a list. */
export interface TextColumn {
  /** The client's name for it. */
  field: string;
  /** Names from the top level down. */
  path: readonly string[];
  /** Number of optional levels on the path, which is the largest definition level. */
  definitionLevelMax: number;
}

/**
 * The column that a field names: a top-level column, or else one inside of structures by its dotted path. A column of the same name at a
 * deeper level does not count. Throws FIELD_MISSING, which lists the top-level columns.
 */
export function textColumn(metadata: FileMetaData, field: string, file: string): TextColumn {
  const root = parquetSchema(metadata);
  const missing = (got: string) => new DataError('FIELD_MISSING', { file, place: 'schema', field, got });
  const found = find(root, field);
  if (found === undefined) throw missing(`columns ${namesOf(root)}`);
  const sameCount = root.children.filter(({ element }) => element.name === found[0]!.element.name).length;
  if (sameCount > 1) throw missing(`${sameCount} columns of that name`);
  const last = found.at(-1)!;
  const path = found.map(({ element }) => element.name);
  if (last.children.length > 0) throw missing(`a group with ${namesOf(last)}`);
  // The reader creates an object per row, in which this name would not be an ordinary property.
  if (path.includes('__proto__')) throw missing('a column that must not be called __proto__');
  const list = found.find(({ element }) => element.repetition_type === 'REPEATED');
  if (list !== undefined) throw missing(`a list in ${path.slice(0, found.indexOf(list) + 1).join('.')}`);
  if (last.element.type !== 'BYTE_ARRAY') throw missing(`a column of type ${last.element.type ?? 'none'}`);
  const optional = found.filter(({ element }) => element.repetition_type !== 'REQUIRED');
  return { field, path, definitionLevelMax: optional.length };
}

/** An exact name has precedence over a path, since names may contain dots. */
function find({ children }: SchemaTree, field: string): SchemaTree[] | undefined {
  const exact = children.find(({ element }) => element.name === field);
  if (exact !== undefined) return [exact];
  for (const child of children) {
    const prefix = `${child.element.name}.`;
    const below = field.startsWith(prefix) ? find(child, field.slice(prefix.length)) : undefined;
    if (below !== undefined) return [child, ...below];
  }
  return undefined;
}

function namesOf({ children }: SchemaTree): string {
  return listNames(children.map(({ element }) => element.name));
}

/** The metadata with only this column, so that the reader touches nothing else. */
export function onlyColumn(metadata: FileMetaData, { path }: TextColumn): FileMetaData {
  const [root] = metadata.schema;
  let node = parquetSchema(metadata);
  const schema: SchemaElement[] = [{ ...root!, num_children: 1 }];
  for (const name of path) {
    node = node.children.find(({ element }) => element.name === name)!;
    schema.push(node.children.length > 0 ? { ...node.element, num_children: 1 } : node.element);
  }
  const isOurs = (names: readonly string[]) =>
    names.length === path.length && names.every((name, i) => name === path[i]);
  const groups = metadata.row_groups.map((group) => ({
    ...group,
    columns: group.columns.filter(({ meta_data: data }) => data !== undefined && isOurs(data.path_in_schema)),
  }));
  return { ...metadata, schema, row_groups: groups };
}

/** A row's value, nested as deep as the path is long; null if a structure around it is null. */
export function valueOf(row: Record<string, unknown>, { path }: TextColumn): unknown {
  let value: unknown = row;
  for (const name of path) {
    if (typeof value !== 'object' || value === null || !Object.hasOwn(value, name)) return null;
    value = (value as Record<string, unknown>)[name];
  }
  return value;
}
