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

local reply, count = { 'ok' }, 0
local function describe_all(ids)
  for i, rec in ipairs(values_of('requests', ids)) do
    if count == most then return end
    if describe(reply, ids[i], rec) then count = count + 1 end
  end
end

if KIND == 'r' then
  describe_all(ready_ids(start, most))
else
  local from = start
  repeat
    local page, ids = range_of(SETS[KIND], from, '+', CHUNK), {}
    for i, member in ipairs(page) do ids[i] = sub(member, 1, 16) end
    describe_all(ids)
    from = #page > 0 and '(' .. page[#page]
  until #page < CHUNK or count == most
end
return answer(reply)
