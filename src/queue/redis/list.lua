-- The next requests in one state, in order of their ids.
--
-- ARGV[4]  the state: 'l' delayed, 'r' ready, 'f' in flight, 'd' done, 'x' dead
-- ARGV[5]  the id of the last entry of the page before, or empty
-- ARGV[6]  the most entries, decimal
-- Returns  'ok', then five values (`entries.lua`) for each
-- O(log N + n) for n entries; for ready ones also what was retried between the first and the last
local KIND, most = ARGV[4], tonumber(ARGV[6])
local SETS = { l = 'delayed', f = 'flight', d = 'done', x = 'dead' }
local start = ARGV[5] == '' and '-' or '(' .. ARGV[5] .. 'g'

local function range(name, from, to, count)
  return call('ZRANGE', PREFIX .. name, from, to, 'BYLEX', 'LIMIT', 0, count)
end

-- Ready requests are in order of their positions. For most that is their id; those that got another
-- position are in `moved` as well, in order of their ids: a merge of the two.
local function ready_ids()
  local ids = range('moved', start, '+', most)
  local to, from, fresh = #ids == most and '[' .. ids[most] .. 'g' or '+', start, 0
  repeat
    local page = range('ready', from, to, CHUNK)
    for _, member in ipairs(page) do
      local id = sub(member, 17, 32)
      if fresh < most and sub(member, 1, 16) == id then
        ids[#ids + 1] = id
        fresh = fresh + 1
      end
    end
    from = #page > 0 and '(' .. page[#page]
  until #page < CHUNK or fresh == most
  table.sort(ids)
  return ids
end

local reply, count = { 'ok' }, 0
local function describe_all(ids)
  for i, rec in ipairs(values_of('requests', ids)) do
    if count == most then return end
    if describe(reply, ids[i], rec) then count = count + 1 end
  end
end

if KIND == 'r' then
  describe_all(ready_ids())
else
  local from = start
  repeat
    local page, ids = range(SETS[KIND], from, '+', CHUNK), {}
    for i, member in ipairs(page) do ids[i] = sub(member, 1, 16) end
    describe_all(ids)
    from = #page > 0 and '(' .. page[#page]
  until #page < CHUNK or count == most
end
return answer(reply)
